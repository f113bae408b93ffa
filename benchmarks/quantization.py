# SPDX-License-Identifier: Apache-2.0
"""Quantised afterwards against quantised in training: ATMC-32 and ATMC-8 LeNets on MNIST.

    python benchmarks/quantization.py --work /tmp/mnist

takes the models that `benchmarks/mnist_lenet.py --work /tmp/mnist` trained, quantises the finished
32-bit ones to several numbers of bits in both ways, and attacks all of them, and the 8-bit ones
that were trained, on the same test images. Writes `results.json` and `results.png`. Stopped and
started again, it goes on where it was.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table

import tfmot_atmc as atmc
from tfmot_atmc.compression.quantization import WAYS, quantize_after_training, stored_kernels
from tfmot_atmc.utils.files import write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)

EPSILON = 76 / 255
BATCH_SIZE = 250
TESTS = {
    "pgd16": atmc.attacks.PGD(epsilon=EPSILON, steps=16, rule="kurakin"),
    "pgd40": atmc.attacks.PGD(epsilon=EPSILON, steps=40, step_size=EPSILON / 6),
}
TITLES = {
    "none": "ATMC-32",
    "trained": "ATMC-8, trained",
    "uniform": "ATMC-32, uniform afterwards",
    "zero_kmeans": "ATMC-32, zero k-means afterwards",
}

WORK = flags.DEFINE_string("work", "mnist_lenet", "Folder of the trained models.")
OUT = flags.DEFINE_string("out", "benchmarks/results/quantization", "Folder for results.")
RATIOS = flags.DEFINE_list("ratios", ["0.01", "0.005"], "Ratios of nonzeros.")
BITS = flags.DEFINE_list("bits", ["8", "6", "4", "3", "2"], "Bits.")
TEST = flags.DEFINE_integer("test", 1000, "Test images attacked.")


def variants() -> Iterator[tuple[str, int]]:
    """The ways and bits that are compared at a ratio."""
    yield "none", 32
    yield "trained", 8
    yield from ((how, int(bits)) for how in WAYS for bits in BITS.value)


def build(ratio: str, how: str, bits: int) -> atmc.training.CompressedModel:
    """The model of a variant, from the files of the training benchmark."""
    file = "atmc8" if how == "trained" else "polished"
    path = Path(WORK.value) / f"ratio{ratio}" / f"{file}.keras"
    model = keras.saving.load_model(path, compile=False)
    return quantize_after_training(model, bits, how) if how in WAYS else model


def tests_of(bits: int) -> list[str]:
    """The attacks on a variant: the longer one where the question is whether anything was lost."""
    return ["pgd16", "pgd40"] if bits >= 8 else ["pgd16"]


class Examiner:
    """Attacks models on the same images, in one network whose weights are exchanged."""

    def __init__(self) -> None:
        data = atmc.datasets.load("mnist", limit=TEST.value)
        self.x, self.y = data.x_test, data.y_test
        self.network = atmc.models.lenet()
        self._attacks = {name: self._compiled(attack) for name, attack in TESTS.items()}

    def _compiled(self, attack: atmc.attacks.Attack) -> Any:
        return tf.function(
            lambda x, y, seed: attack(self.network, x, y, seed=seed), autograph=False
        )

    def right(self, model: keras.Model, test: str | None) -> np.ndarray:
        """Which images a model gets right, as given or after an attack."""
        self.network.set_weights(atmc.strip_compression(model).get_weights())
        found = []
        for start in range(0, len(self.x), BATCH_SIZE):
            x, y = (tf.constant(part[start : start + BATCH_SIZE]) for part in (self.x, self.y))
            if test is not None:
                x = self._attacks[test](x, y, tf.constant([0, start], tf.int64))
            found.append(np.argmax(self.network(x, training=False), -1) == y.numpy())
        return np.concatenate(found)


def measure(ratio: str, how: str, bits: int, examiner: Examiner) -> dict[str, Any]:
    """All figures of one variant; kept in a file, so that nothing is attacked twice."""
    path = Path(WORK.value) / f"quantized-{ratio}-{how}-{bits}-{TEST.value}.json"
    row: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    missing = [test for test in ("clean", *tests_of(bits)) if f"right_{test}" not in row]
    if not missing:
        return row
    model = build(ratio, how, bits)
    report = model.compression_report()
    before = stored_kernels(build(ratio, "none", 32))
    pairs = list(zip(before.values(), stored_kernels(model).values(), strict=True))
    power = sum(float(np.sum(np.square(old))) for old, _ in pairs)
    error = sum(float(np.sum(np.square(new - old))) for old, new in pairs)
    row |= {
        "title": TITLES[how],
        "ratio": float(ratio),
        "how": how,
        "bits": bits,
        "nonzeros": report.nonzeros,
        "max_distinct": report.max_distinct,
        "paper_ratio": report.paper_ratio,
        "relative_error": None if how == "trained" else (error / power) ** 0.5,
    }
    for test in missing:
        right = examiner.right(model, None if test == "clean" else test)
        if test != "clean":
            right &= np.frombuffer(row["right_clean"].encode(), np.uint8) == ord("1")
        row[f"right_{test}"] = "".join("01"[int(r)] for r in right)
        row[test] = float(right.mean())
    write_json(path, row)
    return row


def compare(rows: list[dict[str, Any]]) -> None:
    """Adds to each row its difference from the trained 8-bit model of its ratio, image by image."""

    def right(row: dict[str, Any], test: str) -> np.ndarray:
        return np.frombuffer(row[f"right_{test}"].encode(), np.uint8).astype(int)

    trained = {row["ratio"]: row for row in rows if row["how"] == "trained"}
    for row in rows:
        for test in ("clean", *tests_of(row["bits"])):
            gap = right(row, test) - right(trained[row["ratio"]], test)
            row[f"{test}_minus_trained"] = float(gap.mean())
            row[f"{test}_minus_trained_standard_error"] = float(gap.std() / np.sqrt(gap.size))
    for row in rows:
        for test in ("clean", *tests_of(row["bits"])):
            del row[f"right_{test}"]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracies against bits, a panel for each ratio."""
    ratios = sorted({row["ratio"] for row in rows}, reverse=True)
    figure, panels = plt.subplots(1, len(ratios), figsize=(5.5 * len(ratios), 4.2), sharey=True)
    for panel, ratio in zip(np.atleast_1d(panels), ratios, strict=True):
        mine = [row for row in rows if row["ratio"] == ratio]
        for how, colour in zip(WAYS, ("tab:orange", "tab:blue"), strict=True):
            points = sorted((row for row in mine if row["how"] == how), key=lambda r: r["bits"])
            bits = [row["bits"] for row in points]
            for test, style in (("clean", "--"), ("pgd16", "-")):
                heights = [row[test] for row in points]
                label = f"{TITLES[how].split(', ')[1]}, {'PGD-16' if test == 'pgd16' else test}"
                panel.plot(bits, heights, style, color=colour, marker="o", label=label)
        for row in mine:
            if row["how"] == "none":
                panel.axhline(row["clean"], color="grey", ls="--", lw=1, label="32 bits, clean")
                panel.axhline(row["pgd16"], color="grey", lw=1, label="32 bits, PGD-16")
            if row["how"] == "trained":
                heights = [row["clean"], row["pgd16"]]
                panel.plot([8, 8], heights, "*", color="black", ms=11, label="ATMC-8, trained")
        panel.set(xlabel="bits", ylim=(0, 1), title=f"ratio {ratio:g}")
        panel.set_xticks([int(bits) for bits in BITS.value])
        panel.grid(alpha=0.3)
    np.atleast_1d(panels)[0].set_ylabel(f"accuracy, {TEST.value:,} test images")
    np.atleast_1d(panels)[-1].legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(rows: list[dict[str, Any]]) -> Table:
    """The figures, for people."""
    out = Table(title=f"LeNet on MNIST, epsilon 76/255, {TEST.value} test images")
    headings = ("ratio", "model", "bits", "nonzeros", "values", "size", "clean")
    for heading in (*headings, "PGD-16", "minus trained", "PGD-40", "minus trained"):
        out.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        attacked = []
        for test in TESTS:
            if test in row:
                gap, error = (row[f"{test}_minus_trained{end}"] for end in ("", "_standard_error"))
                attacked += [f"{row[test]:.3f}", f"{gap:+.3f} ± {error:.3f}"]
        out.add_row(
            f"{row['ratio']:g}",
            row["title"],
            str(row["bits"]),
            f"{row['nonzeros']:,}",
            str(row["max_distinct"]),
            f"{row['paper_ratio']:.4f}",
            f"{row['clean']:.3f}",
            *attacked,
        )
    return out


def main(_: list[str]) -> None:
    examiner = Examiner()
    rows = [
        measure(ratio, how, bits, examiner) for ratio in RATIOS.value for how, bits in variants()
    ]
    compare(rows)
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    results = {
        "command": "python benchmarks/quantization.py",
        "epsilon": EPSILON,
        "attacks": {name: repr(attack) for name, attack in TESTS.items()},
        "test_images": TEST.value,
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
    Console(width=150).print(table(rows))


if __name__ == "__main__":
    app.run(main)
