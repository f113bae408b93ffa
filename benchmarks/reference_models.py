# SPDX-License-Identifier: Apache-2.0
"""Rebuilds the reference models: trained, chosen, rounded, exported, measured, with their cards.

    python benchmarks/reference_models.py --work /tmp/references --ratios 0.01,0.005

trains the dense start and ATMC as `mnist_lenet.py` does (its work folder can be taken), chooses
between the 32-bit and the 8-bit stage on held-out images, writes `<name>.keras`, `.tflite`, `.json`
and `.md` into the package, and the table of docs/references.md. Stopped and started again, it goes
on where it was. `--study FILE --seed N` trains ATMC-32 as a study does, and
`--trained FOLDER` takes finished stages from elsewhere, with `--rebuild` for the command that made
them; `--autoattack 1000` adds AutoAttack to the cards of `--ratios`, with `--measure_only` to those
that are there, without training;
`--ratios=` alone writes the documents anew from the cards.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import reference_cards as cards
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.markup import escape

import tfmot_atmc as atmc
from tfmot_atmc import recipes, study
from tfmot_atmc.compression.quantization import quantize_values
from tfmot_atmc.recipes.pipeline import package_versions, standard_attacks
from tfmot_atmc.study.jobs import Job, expand
from tfmot_atmc.study.work import do, folder_of
from tfmot_atmc.utils.files import write_json, written_whole

EPSILON = 76 / 255
# Stages that may become the model, and ways of `quantize_after_training` to round what was trained.
CANDIDATES = ("polished", "atmc8")
EXACT = "as trained"
ROUNDED = {"8 bits, uniform": ("uniform", None), "8 bits, zero k-means": ("zero_kmeans", 127)}

WORK = flags.DEFINE_string("work", "logs/references", "Folder for checkpoints and measurements.")
RATIOS = flags.DEFINE_list("ratios", ["0.01", "0.005"], "Ratios of nonzeros.")
DENSE_EPOCHS = flags.DEFINE_integer("dense_epochs", 16, "Epochs of the dense start.")
EPOCHS = flags.DEFINE_integer("epochs", 14, "Epochs of pruning.")
TRAINED = flags.DEFINE_string("trained", None, "Folder of finished stages, of a single ratio.")
STUDY = flags.DEFINE_string("study", None, "Description of a study to train by.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the study.")
REBUILD = flags.DEFINE_string("rebuild", None, "The command that made --trained.")
IMAGES = flags.DEFINE_list("images", ["10000", "2000", "1000"], "Images: clean, PGD-16, PGD-40.")
AUTOATTACK = flags.DEFINE_integer("autoattack", 0, "Images for AutoAttack; 0 for none.")
MEASURE_ONLY = flags.DEFINE_bool(
    "measure_only", False, "Train nothing: measure the models that are there again."
)
THREADS = flags.DEFINE_integer("threads", 1, "Threads of this process; 0 for all cores.")
OUT = flags.DEFINE_string("out", str(cards.FILES), "Folder of the models and cards.")


def console(text: str) -> None:
    Console().print(escape(text), highlight=False, soft_wrap=True)


def train(ratio: float, data: Any) -> tuple[Path, Path]:
    """Trains what is not there yet, as mnist_lenet.py does; returns the folders of both parts."""
    work = Path(WORK.value)
    common: dict[str, Any] = {
        "attack": atmc.attacks.PGD(epsilon=EPSILON, steps=3),
        "validation_attack": standard_attacks(EPSILON)["PGD-16"],
        "verbose": 2,
    }
    start, folder = work / "dense", work / f"ratio{ratio}"
    stages = [recipes.dense_stage(DENSE_EPOCHS.value)]
    lenet = atmc.models.lenet(seed=0)
    dense = recipes.run_stages(lenet, stages, data, out_dir=start, **common)
    stages = recipes.atmc_stages(ratio, 8, EPOCHS.value)
    plain = atmc.strip_compression(dense)
    recipes.run_stages(plain, stages, data, out_dir=folder, **common)
    return start, folder


def train_by_study(ratio: float) -> tuple[Path, str]:
    """Trains what a study has up to a ratio and is not there yet; returns folder and last stage."""
    description = study.load_description(STUDY.value)
    own = tuple(entry for entry in description.methods if entry.method == "atmc")
    mine = dataclasses.replace(description, methods=own, bits=(32,), seeds=(SEED.value,))
    jobs = expand(mine)
    name = next(job for job in jobs.values() if job.row and job.row["ratio"] == ratio).needs
    needed: list[Job] = []
    while name is not None:
        needed.insert(0, jobs[name])
        name = jobs[name].needs
    for job in needed:
        do(job, jobs, WORK.value)
    return folder_of(WORK.value, needed[-1]), needed[-1].stages[-1].name


def rounded(model: keras.Model, how: str, grid: int | None) -> keras.Model:
    """The model with int8 values: kernels first, then biases, which slimming adds to."""
    small = atmc.slim_model(atmc.quantize_after_training(model, 8, how, grid=grid))
    for layer in small.layers:
        if getattr(layer, "bias", None) is not None:
            bias = keras.ops.convert_to_numpy(layer.bias)
            layer.bias.assign(quantize_values(bias, 8))
    return small


def forms(folder: Path, names: Sequence[str]) -> dict[tuple[str, str], keras.Model]:
    """What is compared: both stages as they are, and rounded in each way."""
    found = {}
    for stage in names:
        if (folder / f"{stage}.keras").exists():
            trained = keras.saving.load_model(folder / f"{stage}.keras", compile=False)
            plain = atmc.slim_model(atmc.deploy(trained, optimize="size").model)
            found[stage, EXACT] = plain
            for values, way in ROUNDED.items():
                found[stage, values] = rounded(plain, *way)
    if not found:
        raise ValueError(f"{folder} has none of {', '.join(names)}.")
    return found


def choose(
    folder: Path, names: Sequence[str], data: Any, work: Path
) -> tuple[str, keras.Model, list[dict[str, Any]]]:
    """The rounded model that is best on held-out images, its stage, and what was compared."""
    rows, models = [], forms(folder, names)
    subset = (data.x_validation, data.y_validation)
    attack = standard_attacks(EPSILON)["PGD-40"]
    for (stage, values), model in models.items():
        target = work / "candidate.tflite"
        export = export_of(model, target, data, "auto" if values == EXACT else "int8")
        digest = hashlib.sha256(target.read_bytes()).hexdigest()[:16]
        kept = work / f"held_out.{digest}.json"
        if not kept.exists():
            report = atmc.evaluate_robustness(model, subset, attacks=attack, verbose=0)
            write_json(kept, {"clean": report.clean_accuracy, "PGD-40": report.robust_accuracy})
        row = {"stage": stage, "values": values, "tflite_bytes": export.bytes}
        rows.append(row | json.loads(kept.read_text()))
        console(f"  {rows[-1]}")
    fit = [row for row in rows if row["values"] != EXACT]
    best = max(fit, key=lambda row: (row["PGD-40"], row["clean"], -row["tflite_bytes"]))
    for row in rows:
        row["chosen"] = row is best
    return best["stage"], models[best["stage"], best["values"]], rows


def export_of(
    model: keras.Model, path: Path, data: Any, values: str = "int8"
) -> atmc.export.ExportReport:
    """Exports; the tolerance is for equal weights, as int8 finds everything rounded already."""
    options: dict[str, Any] = {"tolerance": 1e-5, "measure_latency": False}
    return atmc.export_tflite(model, path, inputs=data.x_test[:256], values=values, **options)


def save_small(model: keras.Model, path: Path) -> None:
    """Saves a model so that plain Keras loads it, with its many zeros packed."""
    with written_whole(path) as partial:
        model.save(partial)
        with zipfile.ZipFile(partial) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        config = json.loads(parts["config.json"], object_hook=_without_own_initializers)
        parts["config.json"] = json.dumps(config).encode()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, content in parts.items():
                # A fixed date: the same model gives the same archive, but for Keras' own date.
                member = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                archive.writestr(member, content, zipfile.ZIP_DEFLATED, 9)
        partial.write_bytes(packed.getvalue())
    again = keras.saving.load_model(path, compile=False)
    if not all(map(np.array_equal, again.get_weights(), model.get_weights())):
        raise ValueError(f"{path} does not hold the weights that were saved.")


def _without_own_initializers(node: dict[str, Any]) -> dict[str, Any]:
    """Weights are loaded, so how they began does not matter and needs no class of ours."""
    if node.get("registered_name") != "tfmot_atmc>FanInUniform":
        return node
    return {
        "module": "keras.initializers",
        "class_name": "Zeros",
        "config": {},
        "registered_name": None,
    }


def measure(name: str, data: Any, work: Path) -> dict[str, Any]:
    """Accuracy of the .tflite file, attacked through its twin; kept, so that none runs twice."""
    path = Path(OUT.value) / f"{name}.tflite"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    clean, few, fewer = map(int, IMAGES.value)
    known = standard_attacks(EPSILON)
    plans: list[tuple[str, Any, int, str]] = [
        ("clean", [], clean, "as they are"),
        ("PGD-16", known["PGD-16"], few, "step 5/255, the paper's rule"),
        ("PGD-40", known["PGD-40"], fewer, "step epsilon / 6"),
    ]
    if AUTOATTACK.value:
        attack = atmc.attacks.AutoAttack(epsilon=EPSILON)
        how = "standard version; Square on the file itself"
        plans.append(("AutoAttack", attack, AUTOATTACK.value, how))
    source = keras.saving.load_model(path.with_suffix(".keras"), compile=False)
    found, warnings = {}, []
    for kind, attack, images, how in plans:
        kept = work / f"{name}.{digest}.{kind}.{images}.json"
        if not kept.exists():
            subset = (data.x_test[:images], data.y_test[:images])
            if kind == "clean":
                row = _clean(path, source, *subset)
            else:
                state = kept.with_suffix(".state.json")
                report = atmc.evaluate_robustness(
                    path, subset, attacks=attack, source=source, state=state, verbose=0
                )
                row = {
                    "accuracy": report.robust_accuracy,
                    "interval": report.robust_interval,
                    "n": report.n,
                    "warnings": report.warnings,
                }
            write_json(kept, row | {"how": how})
        row = json.loads(kept.read_text())
        warnings += [f"{kind}: {text}" for text in row.pop("warnings", [])]
        found[kind] = row
        console(f"  {name} {kind} {row}")
    return {"accuracy": found, "warnings": warnings}


def measure_again(ratio: float, data: Any) -> None:
    """Replaces the accuracies of a card by those of its files, as measured now."""
    path = Path(OUT.value) / f"lenet-mnist-{ratio:g}.json"
    work = Path(WORK.value)
    work.mkdir(parents=True, exist_ok=True)
    card = json.loads(path.read_text())
    write_json(path, card | measure(card["name"], data, work))


def _clean(path: Path, source: keras.Model, x: Any, y: Any) -> dict[str, Any]:
    """Clean accuracy, and whether the file and its twin say the same."""
    (outputs,) = atmc.export.TFLiteModel(path)(x)
    expected = source.predict(x, batch_size=500, verbose=0)
    right = int(np.sum(outputs.argmax(-1) == np.ravel(y)))
    return {
        "accuracy": right / len(x),
        "interval": atmc.evaluation.wilson_interval(right, len(x)),
        "n": len(x),
        "same_labels_as_keras": int(np.sum(outputs.argmax(-1) == expected.argmax(-1))),
        "largest_difference_of_logits": float(np.abs(outputs - expected).max()),
    }


def trained(ratio: float, data: Any) -> tuple[Path, Path, Sequence[str]]:
    """The folders of the dense start and of the stages, and which stages may become the model."""
    if TRAINED.value:
        folder = Path(TRAINED.value)
        return folder.parent / "dense", folder, CANDIDATES
    if STUDY.value:
        folder, stage = train_by_study(ratio)
        return folder, folder, (stage,)
    return *train(ratio, data), CANDIDATES


def command_for(ratio: float) -> str:
    command = f"python benchmarks/reference_models.py --ratios {ratio:g}"
    if STUDY.value:
        return f"{command} --study {STUDY.value} --seed {SEED.value}"
    if (EPOCHS.value, DENSE_EPOCHS.value) != (14, 16):
        command += f" --epochs {EPOCHS.value} --dense_epochs {DENSE_EPOCHS.value}"
    return command


def build(ratio: float, data: Any) -> None:
    """Makes one model with its card."""
    name, out = f"lenet-mnist-{ratio:g}", Path(OUT.value)
    work = Path(WORK.value)
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    start, folder, stages = trained(ratio, data)
    console(f"{name}: choosing")
    stage, model, candidates = choose(folder, stages, data, work)
    if not _is_saved(model, out / f"{name}.keras"):
        save_small(model, out / f"{name}.keras")
    export_of(model, out / f"{name}.tflite", data)
    measured = measure(name, data, work)
    same = measured["accuracy"]["clean"]
    card = {
        "name": name,
        "summary": cards.SUMMARY.format(percent=100 * ratio),
        "files": {
            kind: cards.describe_file(out / f"{name}.{kind}") for kind in ("keras", "tflite")
        },
        "data": {
            "name": "MNIST (LeCun, Cortes and Burges)",
            "training": len(data.x_train),
            "held_out": len(data.x_validation),
            "test": len(data.x_test),
            "preparation": "Pixels are divided by 255; nothing is augmented.",
        },
        "network": cards.network_of(model, folder, stage) | {"ratio": ratio},
        "recipe": {
            "stages": cards.stage_rows(start, folder, stage),
            "after_training": cards.AFTER_TRAINING,
        },
        "selection": {"stage": stage, "rule": cards.RULE, "candidates": candidates},
        "epsilon": EPSILON,
        "epsilon_255": round(EPSILON * 255, 4),
        **measured,
        "agreement": f"the `.keras` file gives the same label on {same['same_labels_as_keras']:,} "
        f"of {same['n']:,} test images.",
        "rebuild": REBUILD.value or command_for(ratio),
        "reproducibility": cards.REPRODUCIBILITY + (cards.TAKEN_OVER if TRAINED.value else ""),
        "versions": package_versions(),
        "licence": "Apache-2.0",
        "intended_use": cards.INTENDED_USE,
        "limits": list(cards.LIMITS),
    }
    write_json(out / f"{name}.json", card)


def _is_saved(model: keras.Model, path: Path) -> bool:
    """Whether the file has these very weights: then it keeps its date, and its checksum."""
    if not path.exists():
        return False
    weights = keras.saving.load_model(path, compile=False).get_weights()
    same = len(weights) == len(model.weights)
    return same and all(map(np.array_equal, weights, model.get_weights()))


def main(_: list[str]) -> None:
    if THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    if TRAINED.value and (len(RATIOS.value) != 1 or not REBUILD.value):
        raise app.UsageError("--trained takes one of --ratios, and --rebuild")
    ratios = [float(ratio) for ratio in RATIOS.value if ratio]
    data = atmc.datasets.load("mnist") if ratios else None
    for ratio in ratios:
        (measure_again if MEASURE_ONLY.value else build)(ratio, data)
    if Path(OUT.value) == cards.FILES:
        cards.write_documents()


if __name__ == "__main__":
    app.run(main)
