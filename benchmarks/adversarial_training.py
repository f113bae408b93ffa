# SPDX-License-Identifier: Apache-2.0
"""Ways of adversarial training side by side: the papers' LeNet on MNIST, from scratch.

    python benchmarks/adversarial_training.py --work /tmp/ways --epochs 6

trains with PGD-3, FGSM with carried perturbations (ATTA), R-FGSM (FastAT), FGSM, WRM and TRADES,
with equal batches, optimizer and number of steps; measures each on test images against PGD-16 and
PGD-40, and writes `results.json` and `results.png`. A watch for catastrophic overfitting looks at
each epoch, tells, and lets training go on. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import csv
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import matplotlib
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table
from tfmot_atmc.augmentation import KeyedBatches

import tfmot_atmc as atmc
from tfmot_atmc.utils.files import write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)

EPSILON = 76 / 255
BATCH_SIZE = 128
WATCHED = 256

WORK = flags.DEFINE_string("work", "adversarial_training", "Folder for checkpoints.")
OUT = flags.DEFINE_string("out", "benchmarks/results/adversarial_training", "Folder for results.")
EPOCHS = flags.DEFINE_integer("epochs", 6, "Epochs of each run.")
TEST = flags.DEFINE_integer("test", 2000, "Test images attacked.")
ONLY = flags.DEFINE_list("only", [], "Only these runs (pgd3, atta, fastat, fastat2, ...).")
THREADS = flags.DEFINE_integer("threads", 0, "Threads of this process; 0 for all cores.")
LIMIT = flags.DEFINE_integer("limit", None, "Examples of each split, to try the script out.")

# Each way: its training attack, from the number of training images, and its objective.
Way = tuple[str, Callable[[int], atmc.attacks.Attack], str]
WAYS: dict[str, Way] = {
    "pgd3": ("PGD-3", lambda n: atmc.attacks.PGD(epsilon=EPSILON, steps=3), "adversarial"),
    "atta": (
        "FGSM + ATTA",
        lambda n: atmc.attacks.ATTA(epsilon=EPSILON, num_examples=n, image_shape=(28, 28, 1)),
        "adversarial",
    ),
    "fastat": ("R-FGSM (FastAT)", lambda n: atmc.attacks.RFGSM(epsilon=EPSILON), "adversarial"),
    "fastat2": (
        "R-FGSM, step 2 eps",
        lambda n: atmc.attacks.RFGSM(epsilon=EPSILON, step_size=2 * EPSILON),
        "adversarial",
    ),
    "fgsm": ("FGSM", lambda n: atmc.attacks.FGSM(epsilon=EPSILON), "adversarial"),
    "wrm": ("WRM", lambda n: atmc.attacks.get("wrm"), "adversarial"),
    "trades": (
        "TRADES-3",
        lambda n: atmc.attacks.get(
            "trades", epsilon=EPSILON, steps=3, step_size=1.25 * EPSILON / 3
        ),
        "trades",
    ),
}
TESTS = {
    "pgd16": atmc.attacks.PGD(epsilon=EPSILON, steps=16, rule="kurakin"),
    "pgd40": atmc.attacks.PGD(epsilon=EPSILON, steps=40, step_size=EPSILON / 6),
}


class EpochSeconds(keras.callbacks.Callback):
    """Logs how long each epoch took, without what other callbacks do at its end."""

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs the seconds."""
        if logs is not None:
            logs["seconds"] = time.perf_counter() - self._start


def build(name: str, data: Any) -> tuple[keras.Model, Any]:
    """The model of a run, compiled, and its batches."""
    _, make_attack, objective = WAYS[name]
    examples = len(data.x_train)
    steps = -(-examples // BATCH_SIZE)
    stage = atmc.recipes.dense_stage(EPOCHS.value)
    attack = make_attack(examples)
    model = atmc.compress(
        atmc.models.lenet(seed=0),
        stage.method,
        attack=attack,
        objective=objective,
        attack_warmup=round(stage.warmup_epochs * steps),
        seed=0,
    )
    model.compile(
        stage.make_optimizer(steps),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    common: dict[str, Any] = {
        "batch_size": BATCH_SIZE,
        "seed": 0,
        "epoch": lambda: model.step // steps,
    }
    if isinstance(attack, atmc.attacks.ATTA):
        return model, KeyedBatches(data.x_train, data.y_train, attack=attack, **common)
    return model, atmc.datasets.EpochBatches(data.x_train, data.y_train, **common)


def train(name: str, data: Any) -> keras.Model:
    """Trains a run to its end, from where it was left; returns the plain model."""
    folder = Path(WORK.value) / name
    path = folder / "model.keras"
    if path.exists():
        return keras.saving.load_model(path)
    folder.mkdir(parents=True, exist_ok=True)
    model, batches = build(name, data)
    watch = atmc.callbacks.CatastrophicOverfitting(
        data.x_validation[:WATCHED],
        data.y_validation[:WATCHED],
        attack=atmc.attacks.PGD(epsilon=EPSILON, steps=5, rule="quarter"),
        stop=False,
    )
    callbacks = [
        EpochSeconds(),
        watch,
        keras.callbacks.CSVLogger(folder / "log.csv", append=True),
        atmc.callbacks.UpdateCompression(),
        keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False),
    ]
    if isinstance(model.attack, atmc.attacks.ATTA):
        keep = atmc.callbacks.KeepPerturbations(folder / "perturbations")
        callbacks.insert(1, keep)  # not counted in the seconds
    model.fit(batches, epochs=EPOCHS.value, callbacks=callbacks, verbose=2)
    plain = atmc.strip_compression(model)
    plain.save(path)
    return plain


def epochs_of(name: str) -> list[dict[str, float]]:
    """The log of a run; an epoch that was interrupted after it was logged counts once."""
    with open(Path(WORK.value) / name / "log.csv", newline="") as file:
        rows = {row["epoch"]: row for row in csv.DictReader(file)}
    return [
        {key: float(value) for key, value in row.items() if not key.startswith("val_")}
        for row in rows.values()
    ]


def measure(name: str, model: keras.Model, data: Any) -> dict[str, Any]:
    """All figures of one run; kept in a file, so that no evaluation runs twice."""
    path = Path(WORK.value) / f"{name}.measured.json"
    if path.exists():
        return json.loads(path.read_text())
    log = epochs_of(name)
    row: dict[str, Any] = {
        "title": WAYS[name][0],
        "attack": repr(WAYS[name][1](len(data.x_train))),
        "objective": WAYS[name][2],
        "epochs": len(log),
        # Without the first epoch, in which the step is traced.
        "seconds_an_epoch": min(epoch["seconds"] for epoch in log),
        "watched_accuracy": [epoch["watched_accuracy"] for epoch in log],
        "catastrophic_overfitting": any(epoch["catastrophic_overfitting"] for epoch in log),
    }
    subset = (data.x_test[: TEST.value], data.y_test[: TEST.value])
    for test, attack in TESTS.items():
        report = atmc.evaluate_robustness(model, subset, attacks=attack, verbose=0)
        row |= {"n": report.n, "clean": report.clean_accuracy, test: report.robust_accuracy}
    write_json(path, row)
    return row


def draw(rows: dict[str, Any], path: Path) -> None:
    """Accuracies as bars, and what the watch saw from epoch to epoch."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8))
    titles = [row["title"] for row in rows.values()]
    for offset, key, label in (
        (-0.27, "clean", "clean"),
        (0.0, "pgd16", "PGD-16, step 5/255"),
        (0.27, "pgd40", "PGD-40, step epsilon/6"),
    ):
        heights = [row[key] for row in rows.values()]
        bars = left.bar([i + offset for i in range(len(rows))], heights, width=0.26, label=label)
        left.bar_label(bars, fmt="%.2f", fontsize=7)
    left.set_xticks(range(len(rows)), titles, fontsize=8)
    left.set(ylabel="accuracy", ylim=(0, 1.08), title="test images, epsilon 76/255")
    left.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    for row in rows.values():
        watched = row["watched_accuracy"]
        right.plot(range(1, len(watched) + 1), watched, marker="o", label=row["title"])
    right.set(
        xlabel="epoch",
        ylabel="accuracy under PGD-5",
        ylim=(0, 1),
        title="what the watch for catastrophic overfitting saw",
    )
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def table(rows: dict[str, Any]) -> Table:
    """The figures, for people."""
    out = Table(title="LeNet on MNIST from scratch, epsilon 76/255")
    for heading in ("training", "clean", "PGD-16", "PGD-40", "s/epoch", "overfitted"):
        out.add_column(heading, justify="left" if heading == "training" else "right")
    for row in rows.values():
        out.add_row(
            row["title"],
            *(f"{row[key]:.4f}" for key in ("clean", "pgd16", "pgd40")),
            f"{row['seconds_an_epoch']:.0f}",
            "yes" if row["catastrophic_overfitting"] else "no",
        )
    return out


def main(_: list[str]) -> None:
    if THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    unknown = sorted(set(ONLY.value) - set(WAYS))
    if unknown:
        raise app.UsageError(f"--only knows {', '.join(WAYS)}. Received {unknown}.")
    data = atmc.datasets.load("mnist", limit=LIMIT.value)
    for name in ONLY.value or WAYS:
        measure(name, train(name, data), data)
    # Runs asked for at other times are reported too.
    done = [name for name in WAYS if (Path(WORK.value) / f"{name}.measured.json").exists()]
    rows = {
        name: json.loads((Path(WORK.value) / f"{name}.measured.json").read_text()) for name in done
    }
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    results = {
        "command": f"python benchmarks/adversarial_training.py --epochs {EPOCHS.value}",
        "epsilon": EPSILON,
        "batch_size": BATCH_SIZE,
        "tests": {name: repr(attack) for name, attack in TESTS.items()},
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "tfmot_atmc": atmc.__version__,
        },
        "runs": rows,
    }
    write_json(out / "results.json", results)
    draw(rows, out / "results.png")
    Console().print(table(rows))


if __name__ == "__main__":
    app.run(main)
