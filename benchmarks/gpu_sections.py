# SPDX-License-Identifier: Apache-2.0
"""How `gpu.py` ends in time: sections in a process of their own, with what they found on disk.

The process writes what it has after every figure. One that crashes or overruns its section costs
that section's rest and no more: another process goes on with the next section. Needs Python alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Seconds that a process has to come to its end after its last section's time is over.
_GRACE = 5.0


def summary(times_ms: Sequence[float], base_ms: float, about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures of one program from its timed rounds.

    Args:
        times_ms: milliseconds a call, one for each round.
        base_ms: median of the program it is compared with.
        about: with `images`, `flops` and `bytes` of a call, each 0 or None if it has no meaning.
    """
    median = statistics.median(times_ms)
    found = {
        "median_ms": median,
        "least_ms": min(times_ms),
        "spread": (max(times_ms) - min(times_ms)) / median,
        "ratio": median / base_ms,
        "times_ms": list(times_ms),
    }
    seconds = median / 1e3
    for key, name, unit in (
        ("images", "images_a_second", 1.0),
        ("flops", "tflops", 1e12),
        ("bytes", "gigabytes_a_second", 1e9),
    ):
        if about.get(key):
            found[name] = about[key] / seconds / unit
    return found


def in_turns(
    calls: Mapping[str, Callable[[], Any]],
    wait: Callable[[Any], Any],
    seconds: float,
    rounds: int = 5,
) -> dict[str, list[float]]:
    """Times calls in turns, each turn long enough for the clock.

    Args:
        calls: by name; a call may return before its work is done.
        wait: waits for what a call returned.
        seconds: about how long all of it may take, after two calls of each to warm up.
        rounds: turns of each.

    Returns:
        Milliseconds a call, one for each round.
    """
    numbers = {}
    for name, call in calls.items():
        wait(call())
        began = time.perf_counter()
        wait(call())
        one = max(time.perf_counter() - began, 1e-5)
        numbers[name] = int(min(max(seconds / len(calls) / rounds / one, 1), 100))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(numbers[name]):
                result = call()
            wait(result)
            times[name].append(1e3 * (time.perf_counter() - began) / numbers[name])
    return times


def write_json(path: Path, report: Any) -> None:
    """Writes a report whole or not at all."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(report, indent=1), encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """Returns a report, empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


class Section:
    """A section at work: its figures, written whenever there is one more, and its end.

    Args:
        out: folder of the reports.
        name: the section.
        seconds: time it has; beyond it `left` is not positive, and a while later the process ends.
        about: facts to keep beside the figures.
        grace: seconds after its time at which the process ends.
    """

    def __init__(
        self,
        out: Path,
        name: str,
        seconds: float,
        about: Mapping[str, Any],
        grace: float = _GRACE,
    ):
        self._path = out / f"{name}.json"
        self._end = time.monotonic() + seconds
        self.report: dict[str, Any] = {**about, "complete": False, "figures": {}}
        self._watch = threading.Timer(seconds + grace, os._exit, [9])
        self._watch.daemon = True

    def __enter__(self) -> Section:
        write_json(self._path, self.report)
        self._watch.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._watch.cancel()
        self.report["complete"] = kind is None and "left_out" not in self.report
        if error is not None:
            self.report["failed"] = f"{kind.__name__}: {str(error)[:600]}"
        write_json(self._path, self.report)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._end - time.monotonic()

    def add(self, name: str, figures: Mapping[str, Any]) -> None:
        """Keeps figures under a name."""
        self.report["figures"][name] = dict(figures)
        write_json(self._path, self.report)

    def leave_out(self, name: str) -> None:
        """Keeps that there was no time for something."""
        self.report.setdefault("left_out", []).append(name)


def supervise(
    command: Callable[[list[str], float], list[str]],
    names: Sequence[str],
    out: Path,
    seconds: float,
) -> list[str]:
    """Runs sections in processes until all were tried or the time is over.

    Args:
        command: from the sections to run and the seconds they have to a command line.
        names: the sections in their order.
        out: folder of the reports.
        seconds: time for all.

    Returns:
        The names of the sections that are complete.
    """
    end = time.monotonic() + seconds
    out.mkdir(parents=True, exist_ok=True)
    for name in names:  # what is there is of another run
        (out / f"{name}.json").unlink(missing_ok=True)
    rest = list(names)
    while rest and end - time.monotonic() > 0:
        left = end - time.monotonic()
        process = subprocess.Popen(command(rest, left - _GRACE))
        try:
            code = process.wait(timeout=left)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        tried = [name for name in rest if (out / f"{name}.json").exists()]
        for name in tried:
            report = read_json(out / f"{name}.json")
            if not report["complete"] and "failed" not in report and "left_out" not in report:
                report["failed"] = "out of time" if code in (None, 9) else f"ended with {code}"
                write_json(out / f"{name}.json", report)
        # A process that cannot even begin would be begun again without end.
        rest = [name for name in rest if name not in tried] if tried else []
    return [name for name in names if read_json(out / f"{name}.json").get("complete")]
