# SPDX-License-Identifier: Apache-2.0
"""Runs what the documents and the docstrings claim."""

import doctest
import functools
import importlib
import json
import pathlib
import pkgutil
import re

import pytest
from documents import DOCUMENTS as SHOWING
from documents import fill, study_table
from front_page import rows as front_rows
from frontier_page import rows as frontier_rows
from paper_figure import best

import tfmot_atmc
from tfmot_atmc import references

ROOT = pathlib.Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^(<!-- not-run -->\s*\n)?```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)")
_MARK = re.compile(r"^<!-- (\w+): ", re.MULTILINE)
KEPT = ROOT / "benchmarks" / "results"
DOCUMENTS = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
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


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_within_the_project_leads_to_a_file(document):
    path = ROOT / document
    links = [link for link in _LINK.findall(path.read_text()) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_tables_of_the_documents_are_those_of_the_kept_results():
    rows = json.loads((KEPT / "mnist_chain" / "paper.json").read_text())
    cards = references.render_table(references.card(name) for name in references.names())
    tables = {"paper": lambda _: best(rows), "references": lambda _: cards}
    tables |= {"front": front_rows, "frontier": frontier_rows}
    shown = set()
    for path in SHOWING:
        text = path.read_text()
        for name in sorted(set(_MARK.findall(text))):
            if name not in tables:
                results = json.loads((KEPT / name / "results.json").read_text())
                tables[name] = functools.partial(study_table, results)
            written = fill(text, name, tables[name])
            assert written == text, f"{path.name} shows other figures of {name} than are kept"
            shown.add(name)
    assert shown >= {"front", "frontier", "paper", "references", "mnist_chain", "cifar10_tuned"}
