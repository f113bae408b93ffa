# SPDX-License-Identifier: Apache-2.0
"""AutoAttack on MNIST models and their .tflite files: what is left, and what it costs.

    python benchmarks/autoattack.py --models dense=dense.keras,atmc8=atmc8.keras \
        --files atmc8=atmc8.tflite --work /tmp/autoattack --out benchmarks/results/autoattack
    python benchmarks/autoattack.py --models dense=dense.keras --scaling 1000,2000,4000

A file is attacked by transfer from the model of the same name and by Square on itself. Stopped and
started again, a run goes on where it was. `--scaling` measures instead how cost and memory grow
with the number of images. `--standard` adds a network trained on clean images, and the same with
its logits scaled up, which masks its gradients.
"""

from __future__ import annotations

import json
import platform
import resource
import time
from pathlib import Path
from typing import Any

import keras
import matplotlib
import numpy as np
import tensorflow as tf
from absl import app, flags
from common import load_plain, named_files
from rich.console import Console
from rich.table import Table

import tfmot_atmc as atmc
from tfmot_atmc.utils.figures import save_figure
from tfmot_atmc.utils.files import write_json, written_whole

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402 (the backend comes first)

MODELS = flags.DEFINE_list("models", [], "name=file.keras, ...")
FILES = flags.DEFINE_list("files", [], "name=file.tflite, ...")
EPSILON = flags.DEFINE_float("epsilon", 76 / 255, "Radius in input units.")
IMAGES = flags.DEFINE_integer("images", 1000, "Test images.")
STANDARD = flags.DEFINE_bool("standard", False, "Train and attack a standard network as well.")
SCALING = flags.DEFINE_list("scaling", [], "Numbers of images, to measure cost and memory.")
STEPS = flags.DEFINE_integer("steps", 100, "Steps of APGD and FAB.")
QUERIES = flags.DEFINE_integer("queries", 5000, "Queries of Square.")
WORK = flags.DEFINE_string("work", "autoattack", "Folder for states and single reports.")
OUT = flags.DEFINE_string("out", None, "Folder for results.json and results.png.")
THREADS = flags.DEFINE_integer("threads", 0, "Threads of this process; 0 for all cores.")


def standard_network(data: Any) -> keras.Model:
    """LeNet trained on clean images for an epoch; kept in the work folder."""
    path = Path(WORK.value) / "standard.keras"
    if not path.exists():
        model = atmc.models.lenet(seed=0)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
        model.fit(data.x_train, data.y_train, batch_size=64, epochs=1, verbose=2)
        with written_whole(path) as partial:
            model.save(partial)
    return keras.saving.load_model(path, compile=False)


def ensemble(epsilon: float) -> atmc.attacks.Attack:
    return atmc.attacks.AutoAttack(epsilon=epsilon, steps=STEPS.value, queries=QUERIES.value)


def measure(name: str, target: Any, data: Any, attacks: Any, **options: Any) -> dict[str, Any]:
    """One evaluation, with its time; resumed, and read where it is done."""
    path = Path(WORK.value) / f"{name}.json"
    if not path.exists():
        start = time.process_time()
        report = atmc.evaluate_robustness(
            target,
            (data.x_test[: IMAGES.value], data.y_test[: IMAGES.value]),
            attacks=attacks,
            state=path.with_suffix(".state"),
            verbose=1,
            **options,
        )
        print(report)
        spent = time.process_time() - start
        write_json(path, report.to_dict() | {"cpu_seconds_of_last_start": round(spent, 1)})
    return json.loads(path.read_text())


def evaluate_all(data: Any) -> dict[str, dict[str, Any]]:
    models = {name: load_plain(path) for name, path in named_files(MODELS.value).items()}
    rows = {
        name: measure(name, model, data, ensemble(EPSILON.value)) for name, model in models.items()
    }
    for name, path in named_files(FILES.value).items():
        pgd = atmc.attacks.PGD(epsilon=EPSILON.value, steps=40, step_size=EPSILON.value / 6)
        square = atmc.attacks.Square(epsilon=EPSILON.value, queries=QUERIES.value)
        attacks = {"PGD-40": pgd, "Square": square}
        rows[f"{name}.tflite"] = measure(f"{name}.tflite", path, data, attacks, source=models[name])
    if STANDARD.value:
        network = standard_network(data)
        masked = keras.Sequential([network, keras.layers.Rescaling(1e3)], name="masked")
        pgd = atmc.attacks.PGD(epsilon=0.3, steps=40)
        for name, model in (("standard", network), ("masked", masked)):
            rows[f"{name} (PGD)"] = measure(f"{name}-pgd", model, data, pgd)
            rows[name] = measure(name, model, data, ensemble(0.3))
    return rows


def scaling() -> list[dict[str, Any]]:
    """Processor time and peak memory of growing numbers of images, smallest first."""
    data = atmc.datasets.load("mnist")
    model = load_plain(next(iter(named_files(MODELS.value).values())))
    attack, rows = ensemble(EPSILON.value), []
    for count in [32, *map(int, SCALING.value)]:  # the first traces
        start, wall = time.process_time(), time.perf_counter()
        atmc.evaluate_robustness(
            model, (data.x_test[:count], data.y_test[:count]), attacks=attack, checks=False
        )
        spent = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row = {
            "images": count,
            "cpu_seconds": round(spent, 1),
            "wall_seconds": round(time.perf_counter() - wall, 1),
            "images_per_cpu_second": round(count / spent, 2),
            "peak_megabytes": round(peak),
        }
        print(row)
        rows.append(row)
    return rows[1:]


def draw(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy after each part, model by model."""
    figure = Figure(figsize=(1.6 + 2.2 * len(rows), 4.2))
    axes = figure.subplots()
    for number, row in enumerate(rows.values()):
        steps = [("clean", row["clean_accuracy"])]
        steps += [(attack["name"].split(" (")[0], attack["accuracy"]) for attack in row["attacks"]]
        places = number + np.linspace(-0.36, 0.36, len(steps))
        bars = axes.bar(places, [100 * a for _, a in steps], 0.7 / len(steps), color="#5b7f95")
        labels = [f"{100 * a:.1f} {name}" for name, a in steps]
        axes.bar_label(bars, labels, rotation=90, fontsize=7, padding=2)
    axes.set_xticks(range(len(rows)), list(rows))
    axes.set(ylim=(0, 140), yticks=range(0, 101, 20), ylabel="% right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    save_figure(figure, path)


def table(rows: dict[str, dict[str, Any]]) -> Table:
    out = Table("model", "images", "clean", "worst case", "95% interval", "warnings")
    for name, row in rows.items():
        low, high = row["robust_interval"]
        out.add_row(
            name,
            str(row["n"]),
            f"{row['clean_accuracy']:.1%}",
            f"{row['robust_accuracy']:.1%}",
            f"{low:.1%} to {high:.1%}",
            str(len(row["warnings"])),
        )
    return out


def main(_: list[str]) -> None:
    if THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    Path(WORK.value).mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "attack": repr(ensemble(EPSILON.value)),
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__},
    }
    if SCALING.value:
        results["scaling"] = scaling()
    else:
        results["reports"] = evaluate_all(atmc.datasets.load("mnist"))
        Console().print(table(results["reports"]))
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
        name = "scaling.json" if SCALING.value else "results.json"
        write_json(Path(OUT.value) / name, results)
        if not SCALING.value:
            draw(results["reports"], Path(OUT.value) / "results.png")


if __name__ == "__main__":
    app.run(main)
