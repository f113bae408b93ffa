# SPDX-License-Identifier: Apache-2.0
"""Runs what the documents and the docstrings claim."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest

import tfmot_atmc

ROOT = pathlib.Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^(<!-- not-run -->\s*\n)?```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(tfmot_atmc.__path__, f"{tfmot_atmc.__name__}.")
)


def _blocks(document):
    """The Python blocks to run, padded so that errors carry the document's line numbers."""
    text = (ROOT / document).read_text()
    return [
        "\n" * (text.count("\n", 0, match.start(2))) + match[2]
        for match in _BLOCK.finditer(text)
        if match[1] is None
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_python_blocks_of_a_document_run_in_order(document, tmp_path, monkeypatch):
    blocks = _blocks(document)
    assert blocks or document != "README.md", "README.md shows no Python that runs"
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, document, "exec"), namespace)


@pytest.mark.parametrize("module", ["tfmot_atmc", *MODULES])
def test_the_examples_in_docstrings_print_what_they_show(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert outcome.failed == 0
