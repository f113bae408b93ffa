# SPDX-License-Identifier: Apache-2.0
"""Keeps the Bazel targets and the files in step; reads Starlark as the Python it resembles."""

import collections
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
_UNREACHABLE = re.compile(r"Unknown host|UnknownHostException|ConnectException|Error downloading")


def _files(*patterns):
    return sorted({str(p.relative_to(ROOT)) for pattern in patterns for p in ROOT.glob(pattern)})


@pytest.fixture(scope="module")
def rules():
    """The targets of the root BUILD file: kind -> list of their attributes."""
    found = collections.defaultdict(list)

    def rule(kind):
        return lambda **attributes: found[kind].append(attributes)

    def glob(patterns, exclude=(), allow_empty=False):
        left_out = _files(*exclude)
        found = [path for path in _files(*patterns) if (ROOT / path).is_file()]
        files = [path for path in found if path not in left_out]
        assert files or allow_empty, f"glob({patterns}) matches nothing"
        return files

    kinds = ["py_binary", "py_library", "py_test", "filegroup"]
    names = {kind: rule(kind) for kind in kinds}
    names |= {"glob": glob, "load": lambda *_: None, "package": lambda **_: None}
    exec(compile((ROOT / "BUILD").read_text(), "BUILD", "exec"), names)
    return found


def test_every_file_that_a_target_names_exists_and_names_are_unique(rules):
    targets = [target for kind in rules.values() for target in kind]
    counts = collections.Counter(target["name"] for target in targets)
    assert [name for name, count in counts.items() if count > 1] == []
    for target in targets:
        for path in [*target["srcs"], *target.get("data", []), target.get("main", "BUILD")]:
            if path.startswith(":"):
                assert path[1:] in counts, f"{target['name']} needs the missing target {path}"
            else:
                assert (ROOT / path).is_file(), f"{target['name']} lists the missing file {path}"
        for dependency in target.get("deps", []):
            assert dependency[1:] in counts, f"{target['name']} needs the missing {dependency}"


def test_every_module_belongs_to_exactly_one_library(rules):
    owners = collections.Counter(path for target in rules["py_library"] for path in target["srcs"])
    modules = _files("tfmot_atmc/**/*.py")
    assert modules
    assert [path for path in modules if owners[path] != 1] == []


def test_every_test_and_every_script_has_a_target_that_runs_it(rules):
    shared = {path for target in rules["py_library"] for path in target["srcs"]}
    assert shared >= set(_files("tests/*.py")) - set(_files("tests/test_*.py"))
    tests = {target["name"]: target for target in rules["py_test"]}
    for path in _files("tests/test_*.py"):
        target = tests[pathlib.Path(path).stem]
        assert path in target["srcs"] and target["args"] == [path]
    mains = {target["main"] for target in rules["py_binary"]}
    assert mains >= set(_files("examples/*.py", "benchmarks/*.py", "tfmot_atmc/__main__.py"))


@pytest.mark.skipif(shutil.which("bazel") is None, reason="bazel is not installed")
def test_bazel_itself_reads_the_targets(rules, tmp_path):
    # --batch leaves no server behind, and the output root nothing in the home folder.
    command = ["bazel", "--batch", f"--output_user_root={tmp_path}", "query", "//..."]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if outcome.returncode and _UNREACHABLE.search(outcome.stderr):
        pytest.skip(f"bazel could not fetch its rules: {outcome.stderr.strip().splitlines()[-1]}")
    assert outcome.returncode == 0, outcome.stderr
    expected = {f"//:{target['name']}" for kind in rules.values() for target in kind}
    assert expected <= set(outcome.stdout.split())
