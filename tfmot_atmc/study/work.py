# SPDX-License-Identifier: Apache-2.0
"""Doing one job of a study, in the folder that is its own."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from tfmot_atmc import attacks, datasets, models
from tfmot_atmc.compression.compress import strip_compression
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.quantization import quantize_after_training
from tfmot_atmc.datasets.splits import Dataset
from tfmot_atmc.evaluation import evaluate_robustness
from tfmot_atmc.recipes.pipeline import load_keras, package_versions
from tfmot_atmc.recipes.run import run_stages
from tfmot_atmc.study.jobs import Job
from tfmot_atmc.utils.files import write_json

__all__ = ["do", "finished", "folder_of"]

_RESULT = "job.json"


def folder_of(out: str | os.PathLike[str], job: Job) -> Path:
    """Returns the folder of a job's files."""
    return Path(out) / "work" / job.name


def finished(out: str | os.PathLike[str], job: Job) -> dict[str, Any] | None:
    """Returns what a job that was done left: its configuration, result and versions; else None.

    Args:
        out: folder of the study.
        job: the job.
    """
    path = folder_of(out, job) / _RESULT
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return found if found.get("digest") == job.digest else None


def do(
    job: Job,
    jobs: Mapping[str, Job],
    out: str | os.PathLike[str],
    data_dir: str | None = None,
) -> None:
    """Does a job, or what is left of it, and writes its result whole.

    Args:
        job: the job; the one it needs is finished.
        jobs: all jobs of the study, by name.
        out: folder of the study.
        data_dir: folder of tensorflow-datasets.
    """
    if finished(out, job) is not None:
        return
    keras.utils.clear_session(free_memory=False)  # the same names of layers for each job
    folder_of(out, job).mkdir(parents=True, exist_ok=True)
    result = (_train if job.stages else _measure)(job, jobs, Path(out), data_dir)
    write_json(
        folder_of(out, job) / _RESULT,
        {
            "digest": job.digest,
            "configuration": job.configuration,
            "result": result,
            "versions": package_versions(),
        },
    )


def _train(job: Job, jobs: Mapping[str, Job], out: Path, data_dir: str | None) -> dict[str, Any]:
    folder, run = folder_of(out, job), job.configuration
    if job.needs is not None:
        before = jobs[job.needs]
        for stage in before.stages:
            for ending in ("keras", "json"):
                _link(folder_of(out, before) / f"{stage.name}.{ending}", folder)
    data = _data(run, data_dir)
    run_stages(
        _network(run, data),
        job.stages,
        data,
        attack=attacks.get(run["attack"]),
        out_dir=folder,
        objective=run["objective"],
        augment=run["augment"],
        seed=run["seed"],
        verbose=0,
    )
    history = json.loads((folder / f"{job.stages[-1].name}.json").read_text())["history"]
    return {"last_epoch": {name: values[-1] for name, values in history.items() if values}}


def _network(run: Mapping[str, Any], data: Dataset) -> keras.Model:
    """Returns the network that a run starts from: a narrower one of its family if it says so."""
    arguments = {"input_shape": data.input_shape, "num_classes": data.num_classes}
    model = models.get(run["model"], seed=run["seed"], **arguments)
    if "narrow" not in run:
        return model
    most = run["narrow"] * models.count_kernel_weights(model)
    return models.widest(
        models.builder(run["model"]),
        lambda network: models.count_kernel_weights(network) <= most,
        seed=run["seed"],
        **arguments,
    )


def _link(source: Path, folder: Path) -> None:
    """Makes a finished stage of another folder visible in this one, without a copy if possible."""
    target = folder / source.name
    if target.exists():
        return
    partial = folder / f"partial.{source.name}"
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, partial)
    partial.replace(target)


def _measure(job: Job, jobs: Mapping[str, Job], out: Path, data_dir: str | None) -> dict[str, Any]:
    trained = jobs[str(job.needs)]
    folder, settings = folder_of(out, job), job.configuration
    model = load_keras(folder_of(out, trained) / f"{trained.stages[-1].name}.keras")
    if settings["quantize"] is not None:
        how, bits = settings["quantize"]
        model = quantize_after_training(model, bits, how)
    report = model.compression_report()
    plain = strip_compression(model) if isinstance(model, CompressedModel) else model
    data = _data(trained.configuration, data_dir)
    measured = [
        _attacked(number, test, settings, plain, data, folder)
        for number, test in enumerate(settings["test"])
    ]
    first = measured[0]
    clean = {name: first[name] for name in ("n", "clean", "clean_low", "clean_high")}
    return {
        "nonzeros": report.nonzeros,
        "nonzeros_by_part": report.parts(),
        "dense_parameters": report.dense_parameters,
        "max_distinct": report.max_distinct,
        "paper_bits": report.paper_bits,
        "paper_ratio": report.paper_ratio,
        "clean": clean,
        "attacks": measured,
    }


def _attacked(
    number: int,
    test: Mapping[str, Any],
    settings: Mapping[str, Any],
    model: keras.Model,
    data: Dataset,
    folder: Path,
) -> dict[str, Any]:
    """Attacks a model once; an attack that is finished is not run again."""
    path = folder / f"attack-{number}.json"
    if path.exists():
        return json.loads(path.read_text())
    attack = attacks.get({"class_name": test["class_name"], "config": test["config"]})
    counts = [settings["test_examples"], test["examples"]]
    examples = min((n for n in counts if n is not None), default=None)
    report = evaluate_robustness(
        model,
        (data.x_test[:examples], data.y_test[:examples]),
        attacks={test["name"]: attack},
        seed=settings["seed"],
        checks=not number,  # they look at the model more than at the attack
        state=folder / f"attack-{number}.state.json",
        verbose=0,
    )
    found = {
        "name": test["name"],
        "epsilon": test["config"].get("epsilon"),
        "n": report.n,
        "clean": report.clean_accuracy,
        "clean_low": report.clean_interval[0],
        "clean_high": report.clean_interval[1],
        "accuracy": report.robust_accuracy,
        "low": report.robust_interval[0],
        "high": report.robust_interval[1],
        "warnings": list(report.warnings),
    }
    write_json(path, found)
    return found


def _data(run: Mapping[str, Any], data_dir: str | None) -> Dataset:
    return _load(run["data"], run["validation_fraction"], run["limit"], data_dir)


@functools.lru_cache(maxsize=1)
def _load(name: str, fraction: float, limit: int | None, data_dir: str | None) -> Dataset:
    return datasets.load(name, validation_fraction=fraction, data_dir=data_dir, limit=limit)
