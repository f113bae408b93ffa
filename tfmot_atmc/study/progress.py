# SPDX-License-Identifier: Apache-2.0
"""What a running study shows: jobs done, jobs at work, time left."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from tfmot_atmc.study.jobs import Job

__all__ = ["Display", "duration"]


def duration(seconds: float | None) -> str:
    """Returns a time that people can read.

    Args:
        seconds: the time; None for one that is not known.

    Example:

    >>> duration(4020), duration(75), duration(None)
    ('1 h 07 min', '1 min 15 s', '?')
    """
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Display:
    """Bars on a terminal, lines elsewhere, nothing without a console.

    Time left is what the jobs done so far took, for the share of work that is left.

    Args:
        jobs: all jobs of the study.
        done: those that were done before.
        console: where to show; None for silence.
    """

    def __init__(self, jobs: Mapping[str, Job], done: set[str], console: Console | None):
        self._jobs, self._console = jobs, console
        self._before, self._ended = len(done), 0
        self._left = sum(job.cost for name, job in jobs.items() if name not in done)
        self._spent = 0.0
        self._began = time.monotonic()
        self._bars: Progress | None = None
        self._lines: dict[str, Any] = {}

    def __enter__(self) -> Display:
        self._began = time.monotonic()
        if self._console is None:
            return self
        self._say(f"{self._before} of {len(self._jobs)} jobs were done before.")
        if self._console.is_terminal:
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=self._console,
            )
            self._bars.start()
            self._all = self._bars.add_task(
                "all jobs", total=len(self._jobs), completed=self._before, left=""
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def begin(self, name: str) -> None:
        """Shows a job that has begun."""
        if self._bars is not None:
            self._lines[name] = self._bars.add_task(escape(name), total=1, left="")

    def end(self, name: str, seconds: float, error: str) -> None:
        """Takes a job off, and says how it went."""
        self._ended += 1
        self._spent += self._jobs[name].cost
        self._left -= self._jobs[name].cost
        if self._bars is not None and name in self._lines:
            self._bars.remove_task(self._lines.pop(name))
            left = duration(self.seconds_left())
            self._bars.update(self._all, advance=1, left=f"about {left} left")
        if error:
            self._say(f"failed: {name}: {error}")
        elif self._bars is None:
            count = self._before + self._ended
            left = duration(self.seconds_left())
            self._say(f"{count}/{len(self._jobs)} {name}: {duration(seconds)}; about {left} left")

    def skip(self, name: str) -> None:
        """Says that a job cannot be done, for want of the one it needs."""
        self._ended += 1
        self._left -= self._jobs[name].cost
        if self._bars is not None:
            self._bars.update(self._all, advance=1)
        self._say(f"left out: {name}: needs {self._jobs[name].needs}")

    def seconds_left(self) -> float | None:
        """Returns about how long the rest will take; None before the first job has ended."""
        if not self._spent:
            return None
        return (time.monotonic() - self._began) * self._left / self._spent

    def _say(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
