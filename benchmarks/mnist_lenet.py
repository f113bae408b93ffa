# SPDX-License-Identifier: Apache-2.0
"""ATMC on MNIST with the papers' LeNet, beside plain l0 projection, from start to .tflite.

    python benchmarks/mnist_lenet.py --work /tmp/mnist --out benchmarks/results/mnist_lenet

trains the dense adversarial start, ATMC at each ratio with 32 and 8 bits, and paired runs of ATMC
and plain projection with equal data, attack and number of steps; evaluates all of it and writes
`results.json` and `results.png`. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import json
import platform
import time
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
from tfmot_atmc import recipes
from tfmot_atmc.utils.files import write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend comes first)

EPSILON = 76 / 255

WORK = flags.DEFINE_string("work", "mnist_lenet", "Folder for checkpoints.")
OUT = flags.DEFINE_string("out", "benchmarks/results/mnist_lenet", "Folder for results.")
DENSE_EPOCHS = flags.DEFINE_integer("dense_epochs", 16, "Epochs of the dense start.")
EPOCHS = flags.DEFINE_list("epochs", ["14", "14"], "Epochs of ATMC, one number a ratio.")
PAIR_EPOCHS = flags.DEFINE_integer("pair_epochs", 2, "Epochs of each paired run.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the paired runs.")
RATIOS = flags.DEFINE_list("ratios", ["0.01", "0.005"], "Ratios of nonzeros.")
ONLY = flags.DEFINE_list("only", [], "Train only these (dense, ratio:0.01, pair:0, ...).")
THREADS = flags.DEFINE_integer("threads", 0, "Threads of this process; 0 for all cores.")
LIMIT = flags.DEFINE_integer("limit", None, "Examples of each split, to try the script out.")


def training_attack() -> atmc.attacks.Attack:
    """PGD with few steps: what training affords."""
    return atmc.attacks.PGD(epsilon=EPSILON, steps=3)


def paper_attack() -> atmc.attacks.Attack:
    """The paper's PGD-16, with its rule for the step: 5/255."""
    return atmc.attacks.PGD(epsilon=EPSILON, steps=16, rule="kurakin")


def strong_attack() -> atmc.attacks.Attack:
    """PGD-40 with a step of epsilon/6, which reaches every corner of the ball."""
    return atmc.attacks.PGD(epsilon=EPSILON, steps=40, step_size=EPSILON / 6)


def train(
    model: keras.Model, stages: list[recipes.Stage], data: Any, folder: str, seed: int
) -> keras.Model:
    """Trains stages in their folder, or reads what is there."""
    return recipes.run_stages(
        model,
        stages,
        data,
        attack=training_attack(),
        validation_attack=paper_attack(),
        out_dir=Path(WORK.value) / folder,
        seed=seed,
        verbose=2,
    )


def wanted(name: str) -> bool:
    """Tells whether a run was asked for on the command line."""
    return not ONLY.value or name in ONLY.value


def pair_stages(kind: str, ratio: float) -> list[recipes.Stage]:
    """One stage of equal length for ATMC and for plain projection."""
    epochs = PAIR_EPOCHS.value
    if kind == "atmc":
        return recipes.atmc_stages(ratio, 32, epochs)[:1]  # as many steps as the other
    return recipes.l0_stages(ratio, epochs)


def train_all(data: Any) -> dict[str, keras.Model]:
    """Trains whatever is not there yet; returns the compressed models by name."""
    models: dict[str, keras.Model] = {}
    start = train(
        atmc.models.lenet(seed=0), [recipes.dense_stage(DENSE_EPOCHS.value)], data, "dense", 0
    )
    models["dense"] = start
    dense = atmc.strip_compression(start)
    for ratio, epochs in zip(map(float, RATIOS.value), map(int, EPOCHS.value), strict=True):
        if wanted(f"ratio:{ratio}"):
            stages = recipes.atmc_stages(ratio, 8, epochs)
            models[f"atmc8@{ratio}"] = train(dense, stages, data, f"ratio{ratio}", 0)
            models[f"atmc32@{ratio}"] = train(dense, stages[:-1], data, f"ratio{ratio}", 0)
    for seed in map(int, SEEDS.value):
        if wanted(f"pair:{seed}"):
            for kind in ("atmc", "l0"):
                name = f"pair-{kind}-{seed}"
                models[name] = train(dense, pair_stages(kind, 0.01), data, name, seed)
    return models


def accuracy(model: keras.Model, data: Any, attack: Any, examples: int) -> dict[str, float]:
    """Clean and robust accuracy on the first test images."""
    subset = (data.x_test[:examples], data.y_test[:examples])
    report = atmc.evaluate_robustness(model, subset, attacks=attack, verbose=0)
    return {"n": report.n, "clean": report.clean_accuracy, "robust": report.robust_accuracy}


def measure(name: str, model: keras.Model, data: Any) -> dict[str, Any]:
    """All figures of one model; kept in a file, so that no evaluation runs twice."""
    path = Path(WORK.value) / f"{name}.measured.json"
    if path.exists():
        return json.loads(path.read_text())
    start = time.time()
    plain = atmc.strip_compression(model)
    report = model.compression_report()
    row: dict[str, Any] = {
        "nonzeros": report.nonzeros,
        "budget": next((c.budget for c in model.constraints if hasattr(c, "budget")), None),
        "nonzeros_by_part": report.parts(),
        "max_distinct": report.max_distinct,
        "paper_bits": report.paper_bits,
        "paper_ratio": report.paper_ratio,
        "train_steps": model.step,
    }
    if name.startswith("pair"):
        row["pgd16"] = accuracy(plain, data, paper_attack(), 5000)
    else:
        row["pgd16"] = accuracy(plain, data, paper_attack(), 10000)
        row["pgd40"] = accuracy(plain, data, strong_attack(), 5000)
        folder = Path(OUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{name.replace('@', '-')}.tflite"
        if name == "dense":
            target = Path(WORK.value) / "dense.tflite"
        export = atmc.export_tflite(plain, target, inputs=data.x_test[:200])
        row["tflite_bytes"], row["dense_tflite_bytes"] = export.bytes, export.dense_bytes
        subset = (data.x_test[:2000], data.y_test[:2000])
        transfer = atmc.evaluate_robustness(
            target, subset, attacks=paper_attack(), source=plain, verbose=0
        )
        row["tflite"] = {
            "n": transfer.n,
            "clean": transfer.clean_accuracy,
            "robust_by_transfer": transfer.robust_accuracy,
        }
    row["evaluation_seconds"] = round(time.time() - start, 1)
    write_json(path, row)
    return row


def paired_difference(rows: dict[str, Any]) -> dict[str, Any]:
    """ATMC minus plain projection, seed by seed."""
    pairs = {}
    for seed in SEEDS.value:
        a, b = rows.get(f"pair-atmc-{seed}"), rows.get(f"pair-l0-{seed}")
        if a and b:
            pairs[seed] = {
                "robust": a["pgd16"]["robust"] - b["pgd16"]["robust"],
                "clean": a["pgd16"]["clean"] - b["pgd16"]["clean"],
            }
    values = [pair["robust"] for pair in pairs.values()]
    if not values:
        return {}
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {"by_seed": pairs, "mean_robust": float(np.mean(values)), "std_robust": spread}


def draw(rows: dict[str, Any], path: Path) -> None:
    """Accuracy against size, and the paired runs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), width_ratios=[1.5, 1])
    main = {n: r for n, r in rows.items() if n.startswith("atmc")}
    for bits, marker in (("atmc32", "o"), ("atmc8", "s")):
        points = sorted((r["paper_ratio"], r) for n, r in main.items() if n.startswith(bits))
        sizes = [size for size, _ in points]
        for key, colour, label in (
            ("clean", "tab:blue", "clean"),
            ("robust", "tab:red", "PGD-16, paper's step"),
        ):
            left.plot(
                sizes,
                [row["pgd16"][key] for _, row in points],
                marker=marker,
                color=colour,
                label=f"{bits.upper()[:4]}-{bits[4:]} {label}",
            )
        left.plot(
            sizes,
            [row["pgd40"]["robust"] for _, row in points],
            marker=marker,
            color="tab:orange",
            label=f"{bits.upper()[:4]}-{bits[4:]} PGD-40, step epsilon/6",
        )
    if "dense" in rows:
        for value, colour in (
            (rows["dense"]["pgd16"]["clean"], "tab:blue"),
            (rows["dense"]["pgd16"]["robust"], "tab:red"),
            (rows["dense"]["pgd40"]["robust"], "tab:orange"),
        ):
            left.axhline(value, color=colour, linestyle="--", linewidth=1)
    left.set(
        xscale="log",
        xlabel="size, as a ratio of the dense kernels (paper's metric)",
        ylabel="accuracy",
        title="MNIST, LeNet, epsilon 76/255 (dashed: dense)",
    )
    left.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    left.grid(alpha=0.3)
    for offset, kind in ((-0.18, "atmc"), (0.18, "l0")):
        seeds = [s for s in SEEDS.value if f"pair-{kind}-{s}" in rows]
        right.bar(
            [i + offset for i in range(len(seeds))],
            [rows[f"pair-{kind}-{s}"]["pgd16"]["robust"] for s in seeds],
            width=0.34,
            label="ATMC-32" if kind == "atmc" else "plain l0",
        )
        right.set_xticks(range(len(seeds)), [f"seed {s}" for s in seeds])
    right.set(ylabel="robust accuracy, 5,000 images", title="ratio 0.01, equal steps", ylim=(0, 1))
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def table(rows: dict[str, Any]) -> Table:
    """The figures, for people."""
    out = Table(title="MNIST, LeNet, epsilon 76/255")
    for heading in (
        "run",
        "nonzeros",
        "values",
        "size ratio",
        "clean",
        "PGD-16",
        "PGD-40",
        "bytes",
    ):
        out.add_column(heading, justify="left" if heading == "run" else "right")
    for name, row in rows.items():
        strong = f"{row['pgd40']['robust']:.4f}" if "pgd40" in row else ""
        size = f"{row['tflite_bytes']:,}" if "tflite_bytes" in row else ""
        out.add_row(
            name,
            f"{row['nonzeros']:,}",
            f"{row['max_distinct']:,}",
            f"{row['paper_ratio']:.5f}",
            f"{row['pgd16']['clean']:.4f}",
            f"{row['pgd16']['robust']:.4f}",
            strong,
            size,
        )
    return out


def main(_: list[str]) -> None:
    if THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    data = atmc.datasets.load("mnist", limit=LIMIT.value)
    models = train_all(data)
    rows = {name: measure(name, model, data) for name, model in models.items()}
    if ONLY.value:
        return
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    results = {
        "command": "python benchmarks/mnist_lenet.py"
        f" --dense_epochs {DENSE_EPOCHS.value} --epochs {','.join(EPOCHS.value)}"
        f" --pair_epochs {PAIR_EPOCHS.value} --ratios {','.join(RATIOS.value)}",
        "epsilon": EPSILON,
        "training_attack": repr(training_attack()),
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "tfmot_atmc": atmc.__version__,
        },
        "runs": rows,
        "paired_difference": paired_difference(rows),
    }
    write_json(out / "results.json", results)
    draw(rows, out / "results.png")
    Console().print(table(rows))


if __name__ == "__main__":
    app.run(main)
