# SPDX-License-Identifier: Apache-2.0
"""Processes that do jobs one after the other, and die with the one that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from tfmot_atmc.study.description import Description
from tfmot_atmc.study.jobs import Job, expand
from tfmot_atmc.study.work import do
from tfmot_atmc.utils.locks import locked

__all__ = ["Outcome", "Task", "Workers", "attempt", "exclusive"]

_WAIT_FOR_OLD_WORKERS = 60.0


class Task(NamedTuple):
    """What a worker is told when it starts."""

    description: Description
    out: str
    data_dir: str | None
    threads: int | None


class Outcome(NamedTuple):
    """How a job went: `error` is empty where it went well."""

    job: str
    seconds: float
    error: str = ""
    details: str = ""


def attempt(job: Job, jobs: dict[str, Job], task: Task) -> Outcome:
    """Does a job; an error becomes part of the outcome.

    Args:
        job: the job.
        jobs: all jobs of the study.
        task: where, and from which data.
    """
    begin = time.monotonic()
    error = details = ""
    try:
        do(job, jobs, task.out, task.data_dir)
    except Exception as raised:
        error = f"{type(raised).__name__}: {' '.join(str(raised).split())}"
        details = traceback.format_exc()
    return Outcome(job.name, time.monotonic() - begin, error, details)


class Workers:
    """A fixed number of processes.

    Args:
        count: how many.
        task: what they work on.
    """

    def __init__(self, count: int, task: Task):
        self._task = task
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start() for _ in range(count)]
        self._busy: dict[int, str] = {}

    def _start(self) -> tuple[Any, connection.Connection]:
        mine, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._task), daemon=True)
        process.start()
        theirs.close()
        return process, mine

    @property
    def idle(self) -> int:
        """How many processes have nothing to do."""
        return len(self._workers) - len(self._busy)

    def give(self, job: str) -> None:
        """Gives a job to an idle process."""
        number = next(i for i in range(len(self._workers)) if i not in self._busy)
        self._busy[number] = job
        with contextlib.suppress(OSError):  # one that has died is noticed by `wait`
            self._workers[number][1].send(job)

    def wait(self) -> list[Outcome]:
        """Waits until a job has ended; a process that has died is replaced."""
        pipes = {self._workers[number][1]: number for number in self._busy}
        outcomes = []
        for ready in connection.wait(list(pipes)):
            number = pipes[ready]  # type: ignore[index]
            job = self._busy.pop(number)
            process, pipe = self._workers[number]
            try:
                outcomes.append(pipe.recv())
            except (EOFError, OSError):
                process.join()
                outcomes.append(Outcome(job, 0.0, _death(process.exitcode)))
                self._workers[number] = self._start()
        return outcomes

    def stop(self) -> None:
        """Ends all processes, whatever they do."""
        for process, _ in self._workers:
            process.terminate()
        for process, pipe in self._workers:
            process.join()
            pipe.close()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (perhaps out of memory: try fewer --jobs)" if name == "SIGKILL" else ""
        return f"The process was ended by {name}{hint}."
    return f"The process ended with exit code {code}."


def _serve(pipe: connection.Connection, task: Task) -> None:
    """Runs in a worker: does jobs by name until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_after, args=(parent.sentinel,), daemon=True).start()
    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, True)
    if task.threads is not None:
        tf.config.threading.set_intra_op_parallelism_threads(task.threads)
        tf.config.threading.set_inter_op_parallelism_threads(task.threads)
    if task.description.deterministic:
        tf.config.experimental.enable_op_determinism()
    task.description.load_own_files()  # read from a pipe, it has imported none
    jobs = expand(task.description)
    with _shared(task.out):
        while True:
            try:
                name = pipe.recv()
            except EOFError:
                return
            pipe.send(attempt(jobs[name], jobs, task))


def _die_after(sentinel: int) -> None:
    """Ends this process when the parent is gone, so that no two write to one folder."""
    connection.wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def exclusive(out: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps a folder to this process; waits a little for workers of one that was killed.

    Args:
        out: the folder.

    Raises:
        RuntimeError: if another study runs in it.
    """
    with locked(Path(out) / ".study.lock", "study"):
        with locked(Path(out) / ".workers.lock", "study", seconds=_WAIT_FOR_OLD_WORKERS):
            pass
        yield


def _shared(out: str) -> contextlib.AbstractContextManager[None]:
    path = Path(out) / ".workers.lock"
    return locked(path, "study", shared=True, seconds=_WAIT_FOR_OLD_WORKERS)
