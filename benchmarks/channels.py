# SPDX-License-Identifier: Apache-2.0
"""What dropping channels is worth in latency: CIFAR ResNets at 0.5, 0.3 and 0.2 of the operations.

    python benchmarks/channels.py --networks resnet20,resnet56 --work /tmp/channels

The networks are UNTRAINED: channels go by the magnitude of random weights (`AL0(ratio=1,
channels=...)`), so the figures say how fast networks of these shapes are, and nothing about
accuracy. Each network's float32 and full int8 files run in turns with the dense ones, in the stock
interpreter on one thread; the figures are medians. Beside them stands the ratio that `plan_latency`
gives for the measured times.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import app, flags
from common import show

import tfmot_atmc as atmc
from tfmot_atmc.compression import OperatorTable
from tfmot_atmc.export import export_tflite, measure_latency
from tfmot_atmc.slimming import layer_costs, slim_model
from tfmot_atmc.utils.files import write_json

NETWORKS = flags.DEFINE_list("networks", ["resnet20"], "Names of `tfmot_atmc.models`.")
RATIOS = flags.DEFINE_list("ratios", ["0.5", "0.3", "0.2"], "Ratios of the operations.")
WORK = flags.DEFINE_string("work", "channels", "Folder for the .tflite files.")
OUT = flags.DEFINE_string("out", "benchmarks/results/channels", "Folder for results.")
ROUNDS = flags.DEFINE_integer("rounds", 31, "Rounds of each measurement.")
PLAN = flags.DEFINE_bool("plan", True, "Whether operators are measured for predictions too.")


def macs(model: keras.Model) -> int:
    return sum(cost.macs or 0 for cost in layer_costs(model))


def pruned(name: str, ratio: float) -> keras.Model:
    """An untrained network with channels of at most that ratio of the operations."""
    model = atmc.models.get(name, seed=0)
    if ratio == 1:
        return model
    method = atmc.methods.AL0(ratio=1.0, channels=ratio, schedule="constant")
    return slim_model(atmc.strip_compression(atmc.compress(model, method)))


def files(name: str, ratio: float, images: np.ndarray, model: keras.Model) -> dict[str, Path]:
    """The float32 and the full int8 file of a network."""
    found = {}
    for values in ("float32", "full_int8"):
        path = Path(WORK.value) / f"{name}-{ratio}-{values}.tflite"
        how: dict[str, Any] = {"inputs": images, "sparse": False, "measure_latency": False}
        if values == "full_int8":
            how |= {"values": values, "representative": images, "min_agreement": 0.0}
        export_tflite(model, path, tolerance=1e9 if values == "full_int8" else None, **how)
        found[values] = path
    return found


def measure(name: str, table: OperatorTable | None) -> list[dict[str, Any]]:
    """One row for each ratio, the dense network first."""
    images = np.random.default_rng(0).random((64, 32, 32, 3), np.float32)
    ratios = [1.0, *map(float, RATIOS.value)]
    models = {ratio: pruned(name, ratio) for ratio in ratios}
    paths = {ratio: files(name, ratio, images, model) for ratio, model in models.items()}
    rows: list[dict[str, Any]] = [
        {"network": name, "target": ratio, "operations": macs(model) / macs(models[1.0])}
        for ratio, model in models.items()
    ]
    for values in ("float32", "full_int8"):
        timed = {str(ratio): str(paths[ratio][values]) for ratio in ratios}
        times = measure_latency(timed, [images[:1]], rounds=ROUNDS.value)
        for row in rows:
            found = times[str(row["target"])]
            row[f"{values}_ms"], row[f"{values}_times"] = found, times["1.0"] / found
            row[f"{values}_bytes"] = paths[row["target"]][values].stat().st_size
    if table is not None:
        dense = atmc.plan_latency(models[1.0], "1000s", table=table).dense_ms
        for row in rows:  # which ratio the plan gives for what was measured, dense network to scale
            wanted = dense / row["float32_times"]
            row["planned_operations"] = atmc.plan_latency(models[1.0], wanted, table=table).ratio
    return rows


def main(_: list[str]) -> None:
    warnings.simplefilter("ignore")
    Path(WORK.value).mkdir(parents=True, exist_ok=True)
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for name in NETWORKS.value:
        table = atmc.measure_operators(atmc.models.get(name, seed=0)) if PLAN.value else None
        found += measure(name, table)
    show("Untrained networks without channels", found)
    write_json(out / "results.json", {"trained": False, "rounds": ROUNDS.value, "rows": found})


if __name__ == "__main__":
    app.run(main)
