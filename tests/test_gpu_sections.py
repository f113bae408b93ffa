# SPDX-License-Identifier: Apache-2.0
"""Promises of the GPU benchmark's sections: an end in time, and partial results that stay."""

from __future__ import annotations

import argparse
import json
import math
import sys

import gpu
import gpu_sections
import pytest
from gpu_sections import Section, in_turns, read_json, summary, supervise

# A process as `gpu.py` runs it: some sections do well, one hangs, one crashes, one raises.
_CHILD = """
import contextlib, os, pathlib, sys, threading
from gpu_sections import Section

out, names = pathlib.Path(sys.argv[1]), sys.argv[2].split(",")
for name in names:
    seconds = 0.2 if name == "hangs" else 60
    section = Section(out, name, seconds, {"of": "test"}, grace=0.1)
    with contextlib.suppress(ValueError), section as s:
        s.add("first", {"value": 1})
        if name == "hangs":
            threading.Event().wait()
        if name == "crashes":
            os._exit(3)
        if name == "raises":
            raise ValueError("no such thing")
        if name == "late":
            s.leave_out("second")
"""


def _command(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(_CHILD)
    return lambda names, seconds: [sys.executable, str(script), str(tmp_path), ",".join(names)]


def test_a_section_that_hangs_or_crashes_costs_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(gpu_sections.Path(gpu_sections.__file__).parent))
    names = ["good", "hangs", "raises", "crashes", "late", "last"]
    (tmp_path / "last.json").write_text('{"complete": true, "figures": {"old": {}}}')
    done = supervise(_command(tmp_path), names, tmp_path, 60)
    assert done == ["good", "last"]
    reports = {name: read_json(tmp_path / f"{name}.json") for name in names}
    assert all(report["figures"] == {"first": {"value": 1}} for report in reports.values())
    assert all(report["of"] == "test" for report in reports.values())
    assert reports["hangs"]["failed"] == "out of time"
    assert reports["crashes"]["failed"] == "ended with 3"
    assert reports["raises"]["failed"] == "ValueError: no such thing"
    assert reports["late"]["left_out"] == ["second"] and not reports["late"]["complete"]


def test_a_process_that_never_comes_back_is_ended_with_the_time(tmp_path):
    waits = "import threading; threading.Event().wait()"
    assert supervise(lambda *_: [sys.executable, "-c", waits], ["a", "b"], tmp_path, 0.5) == []
    assert not list(tmp_path.glob("*.json"))
    # One that ends without having begun anything is not begun again without end.
    assert supervise(lambda *_: [sys.executable, "-c", ""], ["a", "b"], tmp_path, 60) == []


def test_a_section_knows_its_time_and_writes_every_figure_at_once(tmp_path):
    with Section(tmp_path, "s", 1000.0, {}) as section:
        assert 900 < section.left <= 1000
        section.add("one", {"x": 1})
        assert read_json(tmp_path / "s.json") == {"complete": False, "figures": {"one": {"x": 1}}}
    assert read_json(tmp_path / "s.json")["complete"] is True
    assert list(tmp_path.iterdir()) == [tmp_path / "s.json"]


def test_a_summary_has_rates_of_what_is_known_only():
    found = summary([4.0, 2.0, 3.0], 1.5, {"images": 6, "flops": 3e9, "bytes": 0})
    assert found["median_ms"] == 3.0 and found["least_ms"] == 2.0 and found["ratio"] == 2.0
    assert found["spread"] == pytest.approx(2 / 3)
    assert found["images_a_second"] == 2000 and found["tflops"] == pytest.approx(1.0)
    assert "gigabytes_a_second" not in found


def test_calls_take_turns_and_each_is_waited_for():
    order, waited = [], []
    calls = {name: (lambda name=name: order.append(name) or name) for name in "ab"}
    times = in_turns(calls, waited.append, 0.0, rounds=3)
    assert order == ["a", "a", "b", "b", "a", "b", "a", "b", "a", "b"] and waited == order
    assert {name: len(series) for name, series in times.items()} == {"a": 3, "b": 3}


def test_smoke_runs_all_sections_on_this_machine(tmp_path):
    arguments = argparse.Namespace(out=str(tmp_path), minutes=30.0, smoke=True)
    gpu.run(arguments, list(gpu.SHARES))
    reports = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in gpu.SHARES}
    for name, report in reports.items():
        assert "failed" not in report, (name, report["failed"])
        assert report["devices"] and report["tensorflow"]
    steps = reports["correctness"]["figures"]
    assert set(steps) == {"method ATMC", "attack APGD-T", "objective trades"}
    assert all(figures["leaves_device"] == [] for figures in steps.values())
    assert all(max(figures["relative"].values()) < 1e-3 for figures in steps.values())
    ratios = reports["ratios"]["figures"]
    assert {name.split(",")[0] for name in ratios} >= {"plain", "ATMC"}
    assert any(name.endswith("without XLA") for name in ratios)
    assert all(math.isfinite(f["ratio"]) and f["ratio"] > 0 for f in ratios.values())
    selected = reports["selection"]["figures"]
    assert any(name.startswith("project_l0") for name in selected)
    trained = reports["training"]["figures"]
    assert {"dense", "ATMC 0.05"} <= set(trained)
    assert 0 <= trained["ATMC 0.05"]["robust"] <= trained["ATMC 0.05"]["clean"] <= 1
    # A second run finds the trained networks and does not train them again.
    saved = (tmp_path / "dense.keras").stat().st_mtime_ns
    gpu.run(arguments, ["training"])
    assert (tmp_path / "dense.keras").stat().st_mtime_ns == saved
