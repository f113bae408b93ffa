# SPDX-License-Identifier: Apache-2.0
"""The results of a study: a row for every figure, summaries, and the files that hold them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_atmc.study.comparisons import GROUP, compare, pairs_of
from tfmot_atmc.study.description import Description
from tfmot_atmc.study.jobs import Job, variant
from tfmot_atmc.study.work import finished, folder_of
from tfmot_atmc.utils.files import write_bytes, write_json

__all__ = ["CLEAN", "COLUMNS", "collect", "summarize", "write_results"]

CLEAN = "clean"

COLUMNS = (
    *GROUP,
    "variant",
    "method",
    "ratio",
    "bits",
    "quantized",
    "seed",
    "attack",
    "epsilon",
    "accuracy",
    "low",
    "high",
    "examples",
    "nonzeros",
    "max_distinct",
    "paper_bits",
    "paper_bytes",
    "paper_ratio",
    "compression",
    "dense_epochs",
    "epochs",
    "warnings",
    "job",
    "digest",
    "versions",
)
"""What a row of `results.csv` holds; `low` and `high` are the accuracy's 95% interval."""


def collect(
    description: Description,
    jobs: Mapping[str, Job],
    out: str | Path,
    known: Mapping[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    """Returns what a study has found so far, in the order of its description.

    It depends on the finished jobs alone: not on when they ran, nor on how often they were stopped.

    Args:
        description: the study.
        jobs: its jobs.
        out: its folder.
        known: rows of jobs that were done elsewhere, by the job's name.

    Returns:
        A dict of `name`, `description`, `rows`, `summary`, `comparisons` and `failures`.
    """
    rows: list[dict[str, Any]] = []
    failures = []
    for name, job in jobs.items():
        if name in known:
            rows += known[name]
            continue
        found = finished(out, job)
        if found is None:
            failures.append({"job": name, "error": _error(job, jobs, Path(out))})
        elif job.row:
            rows += _rows(job, found)
    summary = summarize(rows)
    return {
        "name": description.name,
        "description": json.loads(json.dumps(description.to_dict())),
        "rows": rows,
        "summary": summary,
        "comparisons": compare(rows, pairs_of(description)),
        "failures": failures,
    }


def _error(job: Job, jobs: Mapping[str, Job], out: Path) -> str:
    path = folder_of(out, job) / "error.txt"
    if path.exists():
        return path.read_text().split("\n", 1)[0]
    before = job.needs and jobs[job.needs]
    if before and finished(out, before) is None and _error(before, jobs, out):
        return f"Needs {job.needs}, which failed."
    return ""


def _rows(job: Job, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    result = found["result"]
    clean = result["clean"]
    accuracies = [
        {
            "name": CLEAN,
            "epsilon": 0.0,
            "accuracy": clean["clean"],
            "low": clean["clean_low"],
            "high": clean["clean_high"],
            "n": clean["n"],
            "warnings": [],
        },
        *result["attacks"],
    ]
    same = {
        **job.row,
        "variant": variant(job.row),
        "nonzeros": result["nonzeros"],
        "max_distinct": result["max_distinct"],
        "paper_bits": result["paper_bits"],
        "paper_bytes": -(-result["paper_bits"] // 8),
        "paper_ratio": result["paper_ratio"],
        "compression": 1 / result["paper_ratio"] if result["paper_ratio"] else None,
        "job": job.name,
        "digest": job.digest,
        "versions": "; ".join(f"{name} {version}" for name, version in found["versions"].items()),
    }
    for entry in accuracies:
        values = same | {
            "attack": entry["name"],
            "epsilon": entry["epsilon"],
            "accuracy": entry["accuracy"],
            "low": entry["low"],
            "high": entry["high"],
            "examples": entry["n"],
            "warnings": " ".join(entry["warnings"]),
        }
        yield {column: values[column] for column in COLUMNS}


def summarize(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns mean, least and greatest accuracy over seeds for each variant, ratio and attack.

    Args:
        rows: rows of the results.
    """
    keys = (*GROUP, "variant", "ratio", "attack")
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    summary = []
    for values, members in groups.items():
        accuracies = [row["accuracy"] for row in members]
        summary.append(
            dict(zip(keys, values, strict=True))
            | {
                "seeds": len(members),
                "mean": float(np.mean(accuracies)),
                "min": min(accuracies),
                "max": max(accuracies),
                "nonzeros": float(np.mean([row["nonzeros"] for row in members])),
                "paper_bytes": float(np.mean([row["paper_bytes"] for row in members])),
                "paper_ratio": float(np.mean([row["paper_ratio"] for row in members])),
                "epochs": members[0]["epochs"],
            }
        )
    return summary


def write_results(results: Mapping[str, Any], jobs: Mapping[str, Job], out: str | Path) -> None:
    """Writes `results.json`, `results.csv` and `times.json`.

    Times are in a file of their own: the others are the same however often the study was stopped.

    Args:
        results: what `collect` returned.
        jobs: the jobs of the study.
        out: its folder.
    """
    folder = Path(out)
    write_json(folder / "results.json", results)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(results["rows"])
    write_bytes(folder / "results.csv", text.getvalue().encode())
    write_json(folder / "times.json", _times(jobs, folder))


def _times(jobs: Mapping[str, Job], out: Path) -> dict[str, Any]:
    """Returns wall times: of each job, and of each measured model with all its training."""
    own = {}
    for name, job in jobs.items():
        path = folder_of(out, job) / "time.json"
        known = json.loads(path.read_text()) if path.exists() else {"attempts": 0, "seconds": 0.0}
        own[name] = known
    whole = {}
    for name, job in jobs.items():
        seconds, current = 0.0, job.needs
        while current is not None:
            seconds += own[current]["seconds"]
            current = jobs[current].needs
        if job.row:
            whole[name] = {
                "training_seconds": seconds,
                "measuring_seconds": own[name]["seconds"],
            }
    return {
        "seconds": sum(entry["seconds"] for entry in own.values()),
        "jobs": own,
        "measured": whole,
    }
