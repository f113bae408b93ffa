# SPDX-License-Identifier: Apache-2.0
"""Whether QuickAutoAttack ranks models as AutoAttack does: a zoo of small networks on MNIST.

    python benchmarks/stand_in.py --work /tmp/stand_in --out benchmarks/results/frontier

trains small networks on 10,000 images, dense and sparse, under weak and strong attacks, with and
without a slope in the backward pass; attacks each with AutoAttack, its stand-in and PGD; and gives
the rank correlations. `--more NAME=FILE,...` adds trained models. Stopped and started again, it
goes on where it was; `--out` always holds what there is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from common import load_plain, named_files, show
from scipy import stats

import tfmot_atmc as atmc
from tfmot_atmc import attacks, models, recipes
from tfmot_atmc.methods import AL0, AdversarialLoss, Stage
from tfmot_atmc.utils.files import write_json

EPSILON = 76 / 255
NETWORKS: dict[str, Any] = {
    "2k": ("compact_cnn", {"filters": (4, 8), "units": 0}),
    "4k": ("compact_cnn", {"filters": (6, 10), "units": 16}),
    "12k": ("compact_cnn", {}),
    "strided": ("mnist_cnn", {"width": 0.25}),
}
DENSE = {"weak": (0.5, 2), "strong": (1.0, 4)}  # share of epsilon, epochs
SPARSE = {"sparse": None, "sparse-slope": 0.05}
MEASURES: dict[str, attacks.Attack] = {
    "AutoAttack": attacks.AutoAttack(epsilon=EPSILON),
    "QuickAutoAttack": attacks.QuickAutoAttack(epsilon=EPSILON),
    "PGD-40, auto": attacks.PGD(epsilon=EPSILON, steps=40, step_size=EPSILON / 6),
    "PGD-40": attacks.PGD(epsilon=EPSILON, steps=40, step_size=EPSILON / 6, backward_slope=None),
    "PGD-10": attacks.PGD(epsilon=EPSILON, steps=10, step_size=EPSILON / 6, backward_slope=None),
}

WORK = flags.DEFINE_string("work", "logs/stand_in", "Folder for models and measurements.")
IMAGES = flags.DEFINE_integer("images", 100, "Test images, from the first.")
EXAMPLES = flags.DEFINE_integer("examples", 10_000, "Training images.")
MORE = flags.DEFINE_list("more", [], "Further models, name=file.keras.")
THREADS = flags.DEFINE_integer("threads", 1, "Threads of this process; 0 for all cores.")
OUT = flags.DEFINE_string("out", None, "Folder for stand_in.json.")


def train(out: Path, start: keras.Model, stage: Stage, attack: attacks.Attack, data: Any) -> Path:
    """A finished model of one stage, plain; trained where it is not there."""
    plain = out / "plain.keras"
    if not plain.exists():
        model = recipes.run_stages(
            start, [stage], data, attack=attack, out_dir=out, seed=0, verbose=0
        )
        atmc.strip_compression(model).save(plain)
    return plain


def zoo(data: Any) -> Iterator[tuple[str, Path]]:
    """All models with their names, each trained when it is asked for."""
    yield from ((name, Path(path)) for name, path in named_files(MORE.value).items())
    for name, (network, arguments) in NETWORKS.items():
        for kind, (share, epochs) in DENSE.items():
            attack = attacks.PGD(epsilon=share * EPSILON, steps=3, backward_slope=None)
            start = models.get(network, seed=0, **arguments)
            stage = recipes.dense_stage(epochs)
            dense = train(Path(WORK.value) / f"{name}-{kind}", start, stage, attack, data)
            yield f"{name} {kind}", dense
        for kind, slope in SPARSE.items():  # from the strong one
            attack = attacks.PGD(epsilon=EPSILON, steps=3, backward_slope=slope)
            loss = AdversarialLoss(0.2, backward_slope=slope)
            stage = Stage("l0", AL0(ratio=0.2), 3, 0.05, clipnorm=5.0, objective=loss)
            start, path = load_plain(str(dense)), Path(WORK.value) / f"{name}-{kind}"
            yield f"{name} {kind}", train(path, start, stage, attack, data)


def measure(name: str, path: Path, data: Any) -> dict[str, Any]:
    """Accuracy of a model under every attack, and what each cost; kept."""
    kept = Path(WORK.value) / f"{name.replace(' ', '-')}.{IMAGES.value}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    model = load_plain(str(path))
    images, labels = data.x_test[: IMAGES.value], data.y_test[: IMAGES.value]
    row: dict[str, Any] = {"model": name}
    for label, attack in MEASURES.items():
        common: dict[str, Any] = {"attacks": attack, "checks": False, "verbose": 0}
        atmc.evaluate_robustness(model, (images[:10], labels[:10]), **common)  # traces
        start = time.process_time()
        report = atmc.evaluate_robustness(model, (images, labels), **common)
        row |= {"clean": report.clean_accuracy, label: report.robust_accuracy}
        row[f"{label}, seconds"] = round(time.process_time() - start, 2)
    write_json(kept, row)
    return row


def main(_: list[str]) -> None:
    if THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    Path(WORK.value).mkdir(parents=True, exist_ok=True)
    data = atmc.datasets.load("mnist", validation_fraction=0.02, limit=EXAMPLES.value)
    rows: list[dict[str, Any]] = []
    for name, path in zoo(data):
        rows.append(measure(name, path, data))
        print({key: value for key, value in rows[-1].items() if "seconds" not in key}, flush=True)
        if OUT.value:
            keep(rows)
    show("models", [{k: v for k, v in row.items() if "seconds" not in k} for row in rows])
    show("ranks", ranks(rows))


def ranks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How each attack ranks the models beside AutoAttack, and what it costs."""
    exact = [row["AutoAttack"] for row in rows]
    return [
        {
            "attack": label,
            "rank correlation": float(stats.spearmanr([row[label] for row in rows], exact)[0]),
            "mean above AutoAttack": float(np.mean([row[label] for row in rows]) - np.mean(exact)),
            "CPU seconds": float(np.sum([row[f"{label}, seconds"] for row in rows])),
        }
        for label in MEASURES
    ]


def keep(rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes what there is; from three models on with the ranks."""
    out = Path(str(OUT.value))
    out.mkdir(parents=True, exist_ok=True)
    found = {"images": IMAGES.value, "models": rows}
    write_json(out / "stand_in.json", found | ({"ranks": ranks(rows)} if len(rows) > 2 else {}))


if __name__ == "__main__":
    app.run(main)
