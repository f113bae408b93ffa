# SPDX-License-Identifier: Apache-2.0
"""Running a study: what is not done yet, several at once, and then its results."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from rich.console import Console

from tfmot_atmc.study.comparisons import check_pairs
from tfmot_atmc.study.description import Description
from tfmot_atmc.study.earlier import rows_of, without
from tfmot_atmc.study.jobs import Job, expand
from tfmot_atmc.study.page import write_page
from tfmot_atmc.study.plots import write_figures
from tfmot_atmc.study.progress import Display
from tfmot_atmc.study.results import collect, write_results
from tfmot_atmc.study.tables import write_tables
from tfmot_atmc.study.work import finished, folder_of
from tfmot_atmc.study.workers import Outcome, Task, Workers, attempt, exclusive
from tfmot_atmc.utils.files import write_bytes, write_json

__all__ = ["StudyError", "run_study"]

_CORES_PER_JOB = 2


class StudyError(RuntimeError):
    """Some jobs of a study failed; the others are done, and the results hold what there is."""


def run_study(
    description: Description,
    out: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    threads: int | None = None,
    data_dir: str | None = None,
    report_only: bool = False,
    known: Sequence[str | os.PathLike[str]] = (),
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains and attacks whatever is not done yet, and writes results, figures and a page.

    What is done is kept under `out`, each piece beside the digest of its configuration. Stopped at
    any moment and called again, also with a longer description, it goes on from there. A job that
    fails is recorded with its error, and is tried again by the next call; those that need it are
    left out, and all others go on.

    Args:
        description: what to run.
        out: folder for `results.json`, `results.csv`, `tables.md`, `times.json`, `page.html`,
            `figures/`, and the models in `work/`.
        jobs: how many processes work at once; None for one for every two cores, or one with a GPU;
            0 for this process alone, as TensorFlow is set up in it.
        threads: threads of TensorFlow in each; None for an equal share of the cores.
        data_dir: folder of tensorflow-datasets.
        report_only: run nothing, and write results, figures and page of what is done.
        known: files `results.json` of earlier runs, whose models may be gone. What was measured
            there under the same configuration is taken over, and no training is run for it alone.
        console: where to show progress; None for silence.

    Returns:
        What `results.json` holds.

    Raises:
        StudyError: at the end, if jobs failed.
        FileNotFoundError: if a file of `known` is not there.
        ValueError: if the description or a file of `known` does not fit, before anything runs.
        RuntimeError: if another study runs in the same folder.

    Example:

    >>> results = run_study(Description(), "out/digits", jobs=2)  # doctest: +SKIP
    >>> results["rows"][0]["accuracy"]  # doctest: +SKIP
    """
    planned = expand(description)
    check_pairs(description)
    rows = rows_of(known, planned)
    todo = without(planned, rows)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if report_only else exclusive(folder):
        if not report_only:
            count = _processes(jobs)
            task = Task(description, os.fspath(folder), data_dir, _threads(count, threads))
            _Run(todo, task, console).run(count)
        shown = {name: job for name, job in planned.items() if name in todo or name in rows}
        results = collect(description, shown, folder, rows)
        write_results(results, todo, folder)
        write_tables(results, folder)
        figures = write_figures(results, folder / "figures")
        write_page(results, figures, json.loads((folder / "times.json").read_text()), folder)
    failed = [failure for failure in results["failures"] if failure["error"]]
    if failed and not report_only:
        raise StudyError(
            f"{len(results['failures'])} of {len(todo)} jobs are not done; first "
            f"{failed[0]['job']}: {failed[0]['error']} All are listed in "
            f"{folder / 'results.json'}; the same command tries them again."
        )
    return results


def _processes(jobs: int | None) -> int:
    if jobs is not None:
        if jobs < 0:
            raise ValueError(f"`jobs` must be at least 0. Received {jobs}.")
        return jobs
    if tf.config.list_physical_devices("GPU"):
        return 1
    return max(1, (os.cpu_count() or 1) // _CORES_PER_JOB)


def _threads(processes: int, threads: int | None) -> int | None:
    if threads is not None or not processes:
        return threads
    return max(1, (os.cpu_count() or 1) // processes)


class _Run:
    """Gives out jobs whose model is ready, and keeps account of them."""

    def __init__(self, jobs: dict[str, Job], task: Task, console: Console | None):
        self._jobs, self._task = jobs, task
        self._done = {name for name, job in jobs.items() if finished(task.out, job) is not None}
        self._open = [name for name in jobs if name not in self._done]
        self._failed: set[str] = set()
        self._display = Display(jobs, self._done, console)

    def run(self, processes: int) -> None:
        if not self._open:
            return
        with self._display:
            (self._in_processes if processes else self._here)(processes)

    def _here(self, _: int) -> None:
        while (name := self._next()) is not None:
            self._begin(name)
            self._end(attempt(self._jobs[name], self._jobs, self._task))

    def _in_processes(self, count: int) -> None:
        workers = Workers(min(count, len(self._open)), self._task)
        running = 0
        try:
            while True:
                while workers.idle and (name := self._next()) is not None:
                    self._begin(name)
                    workers.give(name)
                    running += 1
                if not running:
                    return
                for outcome in workers.wait():
                    running -= 1
                    self._end(outcome)
        finally:
            workers.stop()

    def _next(self) -> str | None:
        """Takes the first job that can begin; drops those that need one that failed."""
        for name in list(self._open):
            needs = self._jobs[name].needs
            if needs in self._failed:
                self._open.remove(name)
                self._failed.add(name)
                self._display.skip(name)
            elif needs is None or needs in self._done:
                self._open.remove(name)
                return name
        return None

    def _begin(self, name: str) -> None:
        folder = folder_of(self._task.out, self._jobs[name])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").unlink(missing_ok=True)
        self._count(folder, attempts=1)
        self._display.begin(name)

    def _end(self, outcome: Outcome) -> None:
        folder = folder_of(self._task.out, self._jobs[outcome.job])
        self._count(folder, seconds=outcome.seconds)
        if outcome.error:
            self._failed.add(outcome.job)
            write_bytes(folder / "error.txt", f"{outcome.error}\n{outcome.details}".encode())
        else:
            self._done.add(outcome.job)
        self._display.end(outcome.job, outcome.seconds, outcome.error)

    @staticmethod
    def _count(folder: Path, **more: float) -> None:
        path = folder / "time.json"
        known = json.loads(path.read_text()) if path.exists() else {"attempts": 0, "seconds": 0.0}
        write_json(path, known | {name: known[name] + value for name, value in more.items()})
