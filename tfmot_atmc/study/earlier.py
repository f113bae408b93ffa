# SPDX-License-Identifier: Apache-2.0
"""Results of an earlier run of a study, taken over where its models are gone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfmot_atmc.study.jobs import Job, variant

__all__ = ["Rows", "rows_of", "without"]

Rows = dict[str, list[dict[str, Any]]]
"""Rows of results by the name of the job that measured them."""


def rows_of(paths: Iterable[str | os.PathLike[str]], jobs: Mapping[str, Job]) -> Rows:
    """Returns the rows of earlier results that these jobs would measure again.

    A job is known by the digest of all that its result depends on. What a method is called does
    not matter: the rows get the present names.

    Args:
        paths: files `results.json` of studies.
        jobs: the jobs of the present study.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if a file does not hold a study's results, or none that these jobs measure.
    """
    found: Rows = {}
    for path in paths:
        measured = _by_digest(Path(path))
        mine = {
            name: [_named(row, job) for row in measured[job.digest]]
            for name, job in jobs.items()
            if job.row and job.digest in measured
        }
        if not mine:
            raise ValueError(
                f"{str(path)!r} holds nothing that this study measures: it is of other trainings "
                "or attacks, or of a version whose methods have other arguments."
            )
        found |= mine
    return found


def without(jobs: Mapping[str, Job], known: Iterable[str]) -> dict[str, Job]:
    """Returns the jobs that are left when some measurements are known.

    Those are the other measurements and all trainings that lead to one of them.

    Args:
        jobs: the jobs of a study, by name.
        known: names of measurements that need not be made.
    """
    left: set[str] = set()
    for name in set(jobs) - set(known):
        current: str | None = name if jobs[name].row else None
        while current is not None and current not in left:
            left.add(current)
            current = jobs[current].needs
    return {name: job for name, job in jobs.items() if name in left}


def _by_digest(path: Path) -> Rows:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        rows = json.loads(path.read_text())["rows"]
        found: Rows = {}
        for row in rows:
            found.setdefault(row["digest"], []).append(row)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{str(path)!r} is not a study's results.json: {error!r}.") from error
    return found


def _named(row: Mapping[str, Any], job: Job) -> dict[str, Any]:
    return {**row, **job.row, "variant": variant(job.row), "job": job.name}
