# SPDX-License-Identifier: Apache-2.0
"""One dialect: entries of docstrings begin in lower case, messages say "Received"."""

import ast
import pathlib
import re

import pytest

import tfmot_atmc

ROOM = pathlib.Path(tfmot_atmc.__file__).parent
FILES = {str(path.relative_to(ROOM)): path for path in sorted(ROOM.rglob("*.py"))}
NAMES = {"Adam", "False", "Keras", "None", "Python", "True"}
_ENTRY = re.compile(r"^( +)[*\w.`, ]+?: ([A-Z][a-z]*)(?![A-Za-z0-9_])")


def _entries(text):
    """First words of the entries under `Args:`, `Attributes:` and `Raises:`, where capital."""
    inside = None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() in ("Args:", "Attributes:", "Raises:", "Class arguments:"):
            inside, depth = indent, None
        elif inside is not None and line.strip():
            if indent <= inside:
                inside = None
                continue
            depth = indent if depth is None else depth
            found = _ENTRY.match(line)
            if found and indent == depth:
                yield found[2]


def _strange(path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            for word in _entries(text):
                if word not in NAMES and (len(word) > 1 or word == "A"):
                    yield f"{getattr(node, 'name', 'module')}: {word}"
        if isinstance(node, ast.Raise):
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    if re.search(r"(^|[,;] (but )?)got ", part.value):
                        yield f"line {part.lineno}: {part.value}"


@pytest.mark.parametrize("name", list(FILES))
def test_docstrings_and_messages_speak_one_dialect(name):
    assert list(_strange(FILES[name])) == []
