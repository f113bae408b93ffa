# SPDX-License-Identifier: Apache-2.0
"""Times the l0 projection against `tf.math.top_k`, and zero k-means, in one process.

All contenders take turns in every round, so that a busy machine slows them alike; medians are
reported. Run: `python benchmarks/projection.py --threads 1 --out projection.json`.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table

from tfmot_atmc.math import project_l0, zero_kmeans

_SIZES = flags.DEFINE_multi_integer("size", [1_000_000, 10_000_000], "Entries to project.")
_FRACTION = flags.DEFINE_float("fraction", 0.01, "Share of the entries to keep.")
_REPEATS = flags.DEFINE_integer("repeats", 15, "Timed rounds.", lower_bound=1)
_THREADS = flags.DEFINE_integer("threads", 1, "Threads for TensorFlow; 0 leaves the default.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write.")

# U, V and C of the four layers of LeNet with 430,500 kernel weights: about 1.11 million entries.
_LENET = [(5, 5), (25, 20), (25, 20), (20, 20), (500, 50), (500, 50)]
_LENET += [(50, 50), (800, 500), (800, 500), (500, 500), (500, 10), (500, 10)]


def top_k_and_scatter(x: tf.Tensor, k: int) -> tf.Tensor:
    """The obvious way: indices by `tf.math.top_k`, values scattered into zeros."""
    _, index = tf.math.top_k(tf.abs(x), k, sorted=False)
    return tf.scatter_nd(index[:, None], tf.gather(x, index), [x.shape[0]])


def _wait(result: object) -> None:
    leaf = tf.nest.flatten(result)[-1]
    tf.reshape(leaf, [-1])[:1].numpy()


def measure(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each contender over interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        _wait(run())
    for _ in range(repeats):
        for name, run in contenders.items():
            start = time.perf_counter()
            _wait(run())
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(series) for name, series in times.items()}


def _normal(shape: tuple[int, ...], seed: int) -> tf.Tensor:
    return tf.random.stateless_normal(shape, seed=[seed, 0], stddev=0.03)


def _projection_rows(tensors: list[tf.Tensor], label: str) -> list[dict]:
    flat = tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)
    k = max(1, int(flat.shape[0] * _FRACTION.value))
    ours = tf.function(lambda: project_l0(tensors, k), autograph=False)
    rival = tf.function(lambda: top_k_and_scatter(flat, k), autograph=False)
    times = measure({"project_l0": ours, "top_k + scatter": rival}, _REPEATS.value)
    base = times["top_k + scatter"]
    return [
        {"case": label, "method": name, "ms": ms, "ratio": base / ms} for name, ms in times.items()
    ]


def _clustering_rows() -> list[dict]:
    x = _normal((800, 500), 2)
    mask = tf.abs(x) > 0.075
    count = int(tf.math.count_nonzero(mask))
    rows = []
    for clusters in (4, 16, 256):
        book = zero_kmeans(x, clusters, where=mask).codebook

        def run(n: int = clusters, initial: tf.Tensor | None = None) -> object:
            return zero_kmeans(x, n, where=mask, initial_codebook=initial)

        cold = tf.function(run, autograph=False)
        warm = tf.function(lambda run=run, book=book: run(initial=book), autograph=False)
        for name, ms in measure({"cold": cold, "warm start": warm}, _REPEATS.value).items():
            case = f"zero_kmeans {clusters} of {count:,}"
            rows.append({"case": case, "method": name, "ms": ms, "ratio": None})
    return rows


def main(argv: list[str]) -> None:
    """Runs the benchmark and reports it."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    tf.config.threading.set_intra_op_parallelism_threads(_THREADS.value)
    tf.config.threading.set_inter_op_parallelism_threads(_THREADS.value)
    rows = _projection_rows([_normal(s, i) for i, s in enumerate(_LENET)], "LeNet U, V, C")
    for size in _SIZES.value:
        rows += _projection_rows([_normal((size,), 1)], f"{size:,} entries")
    rows += _clustering_rows()
    table = Table("case", "method", "median ms", "times faster")
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        table.add_row(row["case"], row["method"], f"{row['ms']:.2f}", ratio)
    Console().print(table)
    if _OUT.value:
        report = {"threads": _THREADS.value, "fraction": _FRACTION.value, "rows": rows}
        target = Path(_OUT.value)
        temporary = target.with_name(target.name + ".tmp")
        temporary.write_text(json.dumps(report, indent=2), encoding="utf-8")
        os.replace(temporary, target)


if __name__ == "__main__":
    app.run(main)
