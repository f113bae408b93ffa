# SPDX-License-Identifier: Apache-2.0
"""The house rules that no linter knows: which way imports point, and how large a room may be."""

import ast
import functools
import graphlib
import importlib
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "tfmot_atmc"
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60

# An import points down, or stays in its package. A new package needs a floor here.
FLOORS = {
    "math": 0,
    "utils": 0,
    "version": 0,
    "attacks": 1,
    "kernels": 1,
    "models": 1,
    "slimming": 1,
    "constraints": 2,
    "datasets": 2,
    "export": 2,
    "tasks": 2,
    "evaluation": 3,
    "methods": 3,
    "compression": 4,
    "recipes": 5,
    "api": 6,
    "study": 6,
    "cli": 7,
    "__main__": 8,
}
# Attacks take any callable and the mathematics any tensor, so neither may know Keras.
WITHOUT_KERAS = ("attacks", "math")
LEGACY = ("tensorflow_model_optimization", "tf_keras")

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}
everywhere = pytest.mark.parametrize("module", FILES)


@functools.cache
def _tree(module):
    return ast.parse(FILES[module].read_text())


def _walk(tree, into_functions=True):
    """All nodes, those under `if TYPE_CHECKING` too: what is only needed for a type is needed."""
    for node in ast.iter_child_nodes(tree):
        if into_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            yield from _walk(node, into_functions)


def _imports(module, into_functions=True):
    """Full names of the modules that a module imports, submodules told from other names."""
    for node in _walk(_tree(module), into_functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")
                if FILES[module].name != "__init__.py":
                    package = package[:-1]
                parents = package[: len(package) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield name if name in FILES else base


def _own_imports(module):
    return {name for name in _imports(module) if name.split(".")[0] == PACKAGE}


def _room(module):
    return module.split(".")[1]


def _functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def _code_lines(function):
    """Lines of a function from `def` to its end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        text = function.body[0]
        lines -= text.end_lineno - text.lineno + 1
    return lines


@everywhere
def test_modules_and_functions_are_small(module):
    assert len(FILES[module].read_text().splitlines()) <= MAX_MODULE_LINES
    sizes = {function.name: _code_lines(function) for function in _functions(_tree(module))}
    assert {name: size for name, size in sizes.items() if size > MAX_FUNCTION_LINES} == {}


@everywhere
def test_each_file_names_its_licence_first(module):
    assert FILES[module].read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")


@everywhere
def test_imports_point_down(module):
    if module == PACKAGE:
        return
    assert _room(module) in FLOORS, f"{module} has no floor in FLOORS"
    for imported in _own_imports(module):
        assert imported != PACKAGE, f"{module} imports the package's front door"
        down = FLOORS[_room(imported)] < FLOORS[_room(module)]
        assert down or _room(imported) == _room(module), f"{module} imports {imported}"


@everywhere
def test_attacks_and_mathematics_know_no_keras(module):
    if module != PACKAGE and _room(module) in WITHOUT_KERAS:
        assert not [name for name in _imports(module) if name.split(".")[0] == "keras"]


def test_imports_go_round_in_no_circle():
    graph = {module: _own_imports(module) - {module} for module in FILES}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) >= set(FILES)


@everywhere
def test_legacy_keras_is_never_touched_at_import(module):
    at_import = {name.split(".")[0] for name in _imports(module, into_functions=False)}
    assert at_import.isdisjoint(LEGACY)
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Attribute) and node.attr == "keras":
            assert not (isinstance(node.value, ast.Name) and node.value.id in ("tf", "tensorflow"))


@everywhere
def test_the_library_neither_asserts_nor_prints(module):
    for node in ast.walk(_tree(module)):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: raise an error that says why"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and module[-4:] != ".cli":
            assert node.func.id != "print", f"line {node.lineno}: return or log it"


@everywhere
def test_public_names_are_listed_and_documented(module):
    tree = _tree(module)
    assert ast.get_docstring(tree), "the module has no docstring"
    listed = _listed(_tree(f"{PACKAGE}.api") if module == PACKAGE else tree)
    if FILES[module].name == "__init__.py":
        assert listed is not None, "the package has no __all__"
    for node in tree.body:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        if isinstance(node, kinds) and not node.name.startswith("_"):
            assert listed is None or node.name in listed, f"{node.name} is not in __all__"
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@everywhere
def test_public_methods_are_documented_where_they_are_first_defined(module):
    imported = importlib.import_module(module)
    for node in _tree(module).body:
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
            continue
        bases = getattr(imported, node.name).__mro__[1:]
        for method in _methods(node):
            inherited = any(method.name in vars(base) for base in bases)
            assert inherited or ast.get_docstring(method), f"{node.name}.{method.name}"


def _methods(node):
    return [
        method
        for method in node.body
        if isinstance(method, ast.FunctionDef)
        and not method.name.startswith("_")
        and not any(getattr(d, "attr", None) == "setter" for d in method.decorator_list)
    ]


def _listed(tree):
    """The value of `__all__`, or None."""
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            return ast.literal_eval(node.value)
    return None


@everywhere
def test_all_lists_only_what_is_there(module):
    imported = importlib.import_module(module)
    missing = [name for name in getattr(imported, "__all__", []) if not hasattr(imported, name)]
    assert missing == []


def test_importing_the_package_leaves_legacy_keras_alone():
    code = (
        f"import os, sys, {PACKAGE}\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'tensorflow_model_optimization', 'tf_keras', "
        "'tensorflow_datasets'}), os.environ.get('TF_USE_LEGACY_KERAS'))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    outcome = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert outcome.stdout.split("\n")[0] == "[] None"


def test_the_table_of_floors_for_contributors_is_the_one_that_is_tested():
    table = (ROOT / "CONTRIBUTING.md").read_text().split("| floor | |")[1].split("\n\n")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ")]
    written = {
        name.strip(" `"): int(floor) for floor, names in rows[1:] for name in names.split(",")
    }
    assert written == FLOORS
