# SPDX-License-Identifier: Apache-2.0
"""The whole way from a model's name or file to a checked .tflite file and its figures."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc import attacks
from tfmot_atmc.attacks import Attack
from tfmot_atmc.compression.budget import (
    BudgetPlan,
    FittedModel,
    fit_to_bytes,
)
from tfmot_atmc.compression.compress import strip_compression
from tfmot_atmc.compression.deploy import deploy
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.datasets import made_up
from tfmot_atmc.datasets.splits import Dataset
from tfmot_atmc.export import export_tflite
from tfmot_atmc.recipes.defaults import defaults
from tfmot_atmc.recipes.measures import MEASURES, attacker, measured
from tfmot_atmc.recipes.microcontroller import plan_code, write_code
from tfmot_atmc.recipes.networks import load_keras, network_and_data, plan_operations, planned
from tfmot_atmc.recipes.run import run_stages
from tfmot_atmc.recipes.settings import CompressionSettings
from tfmot_atmc.recipes.sources import radius_of
from tfmot_atmc.recipes.stages import sloped
from tfmot_atmc.utils.figures import results_figure, save_figure
from tfmot_atmc.utils.files import write_json
from tfmot_atmc.utils.locks import locked
from tfmot_atmc.version import __version__

__all__ = [
    "EpochLines",
    "load_keras",
    "make_attack",
    "package_versions",
    "run_compression",
    "standard_attacks",
]

_PARITY_EXAMPLES = 256
_CALIBRATION = 300
_PACKAGES = ("tensorflow", "keras", "numpy", "ai-edge-litert")


def run_compression(
    settings: CompressionSettings,
    *,
    verbose: int = 0,
    log: Callable[[str], None] | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains, compresses, strips, evaluates and exports; interrupted, it goes on when called again.

    Writes into `settings.out`: `<stage>.keras` and `<stage>.json` for each stage, `final.keras`
    (plain Keras, the twin of `model.tflite`), `model.tflite`, `dense.tflite`, `results.json` and
    `results.png`.

    With `settings.max_flash` or `settings.max_ram` also `model.c` and `model.h`, within them; the
    ratio is planned for them where none is given.

    With `settings.max_bytes` the ratio is planned before training, and `model.tflite` is held to
    that size: its values have 8 bits, and its least influential channels go where they must. Then
    `"compressed"` in the results is the model with them, and `"tflite"` the file without.

    Args:
        settings: what to do.
        verbose: as in `keras.Model.fit`; also whether evaluation shows its progress.
        log: called with lines on the progress; None for silence.
        command: the command line, for the record.

    Returns:
        What `results.json` holds.

    Raises:
        ValueError: for settings that do not fit, also those of an older run in the same folder; if
            no file of the model can be as small as `max_bytes`.
        FileNotFoundError: if `model` names a file that is not there.
        FloatingPointError: if training diverges.
        ExportError: if the .tflite file cannot be made, or is not the model.

    Example:

    >>> results = run_compression(CompressionSettings(out="digits"))  # doctest: +SKIP
    >>> results["bytes"]["tflite"]  # doctest: +SKIP
    """
    settings = settings.resolved()
    say = log or (lambda line: None)
    start, data = network_and_data(settings)
    training_attack = _training_attack(settings, data)
    start, plan = planned(settings, start, data, say)
    plans = plan, plan_operations(settings, start, say), plan_code(settings, start, data, say)
    chosen = _with_ratio(settings, *plans)
    out = Path(str(settings.out))
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".run.lock", "run"):
        trained, seconds = _train(chosen, start, data, training_attack, verbose, say)
        results = {
            "settings": dataclasses.asdict(settings),
            "command": list(command),
            "versions": package_versions(),
            "seconds": seconds,
            "training_attack": attacks.serialize(training_attack),
            **_results(settings, trained, start, data, plan, verbose, say),
        }
        write_json(out / "results.json", results)
        save_figure(results_figure(results), out / "results.png")
    return json.loads((out / "results.json").read_text())


def _results(
    settings: CompressionSettings,
    trained: CompressedModel,
    start: keras.Model,
    data: Dataset,
    plan: BudgetPlan | None,
    verbose: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Exports and measures what was trained; returns what is to be kept of it."""
    out = Path(str(settings.out))
    # Each kernel in the form of fewer bytes: a product of sparse factors may be dense.
    final = trained
    if isinstance(trained, CompressedModel):
        final = deploy(trained, optimize="size").model
    dense = start
    if settings.dense_epochs:
        dense = strip_compression(load_keras(out / "dense.keras"))
    path = out / "model.tflite"
    say("Exporting")
    parity = data.x_test[:_PARITY_EXAMPLES]
    dense_file = export_tflite(
        dense, out / "dense.tflite", inputs=parity, sparse=False, measure_latency=False
    )
    if plan is None:
        exported = export_tflite(final, path, inputs=parity, **_ends(settings, data))
        fitted = FittedModel(final, exported, {}, {})
    else:
        fitted = _fit(settings, trained, data, path, say)
    twin, file = fitted.model, fitted.report
    _save(twin, out / "final.keras")
    compressed = final if fitted.channels else twin
    code = write_code(settings, twin, data, out / "model.c")
    targets = _targets((dense, compressed, twin), {"tflite": file, "c": code})
    evaluation = _evaluate(settings, data, targets, verbose, say)
    report = trained.compression_report()
    return {
        "measure": MEASURES[data.task],
        "evaluation": evaluation,
        "compression": report.to_dict(),
        "bytes": _bytes(report, dense_file.bytes, file.bytes),
        "budget": None if plan is None else _budget(plan, fitted),
        "export": file.to_dict(),
        "warnings": _warnings(data, evaluation, file.warnings),
        "c": None if code is None else code.to_dict(),
    }


def make_attack(name: str, epsilon: Any, steps: int | None = None, **arguments: Any) -> Attack:
    """Returns an attack by name; `epsilon` and `steps` are for those that have them.

    Args:
        name: as in `tfmot_atmc.attacks.get`.
        epsilon: radius in input units.
        steps: number of steps, or None for the attack's own.
        **arguments: further arguments of the attack.

    Raises:
        ValueError: the name is unknown, or is that of ATTA without the data it is to train on.

    Example:

    >>> make_attack("fgsm", 0.1, steps=7).epsilon.tolist()
    0.1
    >>> make_attack("wrm", 0.1, steps=3)
    WRM(bounds=(0.0, 1.0), seed=0, loss=None, gamma=1.3, steps=3)
    """
    kind = attacks.class_of(name)
    if kind.takes("epsilon"):
        arguments["epsilon"] = epsilon
    if issubclass(kind, attacks.ATTA) and "num_examples" not in arguments:
        raise ValueError(
            "ATTA carries perturbations through the training on one set of data and is no attack "
            "for tests. Give `num_examples` and `image_shape`, or another attack, such as 'pgd'."
        )
    attack = kind(**arguments)
    if steps is None or "steps" not in attack.get_config():
        return attack
    return kind.from_config(attack.get_config() | {"steps": steps})


def standard_attacks(epsilon: Any, bounds: tuple[Any, Any] = (0.0, 1.0)) -> dict[str, Attack]:
    """Returns the attacks every result is given for: the papers' PGD-16, and a longer PGD-40.

    Args:
        epsilon: radius in input units, one for all features or one for each.
        bounds: lowest and highest value of an input, likewise.
    """
    common: dict[str, Any] = {"epsilon": epsilon, "bounds": bounds}
    return {
        "PGD-16": attacks.PGD(steps=16, rule="kurakin", **common),
        "PGD-40": attacks.PGD(steps=40, step_size=epsilon / 6, **common),
    }


class EpochLines(keras.callbacks.Callback):
    """Logs one line for every epoch, for where a progress bar cannot be shown.

    Args:
        log: called with each line.
    """

    def __init__(self, log: Callable[[str], None]):
        super().__init__()
        self._log = log

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Logs the epoch's metrics."""
        values = " ".join(f"{name} {float(value):.4f}" for name, value in (logs or {}).items())
        self._log(f"  epoch {epoch + 1}/{self.params['epochs']}: {values}")


def _fit(
    settings: CompressionSettings,
    trained: CompressedModel,
    data: Dataset,
    path: Path,
    say: Callable[[str], None],
) -> FittedModel:
    """Exports within the size; what matters is measured on training images, attacked ones too."""
    values = settings.file_values()
    deployed = deploy(trained, optimize="size", values=values).model
    attack = standard_attacks(radius_of(settings.epsilon, data), data.bounds)["PGD-16"]
    x, y = data.x_train[:_PARITY_EXAMPLES], data.y_train[:_PARITY_EXAMPLES]
    seed = tf.constant([settings.seed, attack.seed], tf.int64)
    attacked = attacker(deployed, attack, data)(x, y, seed)
    examples = np.concatenate([x, attacked])
    fitted = fit_to_bytes(deployed, path, settings.max_bytes or 0, examples, values=values)
    gone = ", ".join(f"{count} of {name}" for name, count in fitted.removed.items())
    say(
        f"{path.name}: {fitted.report.bytes:,} bytes, "
        + (f"after the channels of least influence were removed: {gone}" if gone else "as trained")
    )
    return fitted


def _ends(settings: CompressionSettings, data: Dataset) -> dict[str, Any]:
    """What the file takes and returns, and the names of its classes."""
    found: dict[str, Any] = {"class_names": data.class_names}
    if data.task != "classes":
        found["min_agreement"] = 0.0  # the largest output means nothing there
    if settings.file_values() != "int8":  # weights of fewer bits
        found["values"] = settings.file_values()
    if settings.input_type != "float32":
        found |= {
            "values": "full_int8",
            "representative": data.x_train[:_CALIBRATION],
            "input_type": settings.input_type,
            "output_type": settings.input_type,
        }
    return found


def _budget(plan: BudgetPlan, fitted: FittedModel) -> dict[str, Any]:
    return {
        **dataclasses.asdict(plan),
        "bytes": fitted.report.bytes,
        "channels_kept": fitted.channels,
        "channels_removed": fitted.removed,
    }


def _training_attack(settings: CompressionSettings, data: Dataset) -> Attack:
    epsilon = radius_of(settings.epsilon, data)
    more: dict[str, Any] = {"bounds": data.bounds}
    if settings.attack.lower() == "atta":  # `run_stages` knows the data it carries them through
        return attacks.ATTA(epsilon=epsilon, steps=settings.steps or 1, **more)
    return make_attack(settings.attack, epsilon, settings.steps, **more)


def _train(
    settings: CompressionSettings,
    start: keras.Model,
    data: Dataset,
    attack: Attack,
    verbose: int,
    say: Callable[[str], None],
) -> tuple[Any, dict[str, float]]:
    """Runs the stages one by one, to know what each of them took, interruptions included."""
    out, stages = Path(str(settings.out)), [sloped(s, attack) for s in settings.stages()]
    clock = out / "seconds.json"
    seconds: dict[str, float] = json.loads(clock.read_text()) if clock.exists() else {}
    trained: Any = start
    for number, stage in enumerate(stages):
        done = (out / f"{stage.name}.json").exists()
        say(f"Stage {stage.name}: " + ("done before" if done else f"{stage.epochs} epochs"))
        begin = time.monotonic()
        try:
            trained = run_stages(
                start,
                stages[: number + 1],
                data,
                attack=attack,
                out_dir=out,
                objective=settings.objective,
                augment=None if settings.data else defaults(settings.dataset).augment,
                seed=settings.seed,
                verbose=verbose,
                extra_callbacks=[] if verbose else [EpochLines(say)],
            )
        finally:
            if not done:
                seconds[stage.name] = seconds.get(stage.name, 0.0) + time.monotonic() - begin
                write_json(clock, seconds)
    return trained, seconds


def _warnings(data: Dataset, evaluation: dict[str, Any], said: Sequence[str]) -> list[str]:
    """What makes the figures say little, each thing once."""
    found = list(said)
    if data.name in made_up.NAMES:
        found.append(
            f"{data.name} is made up: its figures show that the network trains, and say nothing "
            "of real data."
        )
    for name in ("compressed", "tflite"):
        found += evaluation[name]["report"]["warnings"]
    return list(dict.fromkeys(found))


def _bytes(report: Any, dense_tflite: int, tflite: int) -> dict[str, int]:
    return {
        "dense_kernels": 4 * report.dense_parameters,
        "paper": -(-report.paper_bits // 8),
        "dense_tflite": dense_tflite,
        "tflite": tflite,
    }


def _targets(
    networks: tuple[keras.Model, keras.Model, keras.Model], files: dict[str, Any]
) -> list[tuple[str, Any, keras.Model | None]]:
    """What is attacked: two models by themselves, and the files through their twin."""
    dense, compressed, twin = networks
    made = [(kind, file.path, twin) for kind, file in files.items() if file is not None]
    return [("dense", dense, None), ("compressed", compressed, None), *made]


def _with_ratio(settings: CompressionSettings, *plans: Any) -> CompressionSettings:
    """The settings with the smallest ratio of the plans, where none is given."""
    found = [plan.ratio for plan in plans if plan is not None]
    return dataclasses.replace(settings, ratio=settings.ratio or min(found, default=None))


def _save(model: keras.Model, path: Path) -> None:
    partial = path.with_name(f"partial.{path.name}")
    model.save(partial)
    partial.replace(path)


def _evaluate(
    settings: CompressionSettings,
    data: Dataset,
    targets: Sequence[tuple[str, Any, keras.Model | None]],
    verbose: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Attacks models, and files through their twin: names, targets and twins."""
    found = {}
    # One set for all: what was traced for a model serves the file that is attacked through it.
    chosen = standard_attacks(radius_of(settings.epsilon, data), data.bounds)
    for name, target, source in targets:
        say(f"Attacking the {name} model")
        found[name] = measured(
            target, data, chosen, source=source, seed=settings.seed, verbose=verbose
        )
    return found


def package_versions() -> dict[str, str]:
    """Returns the versions of Python, of this package and of those it stands on."""
    found = {"tfmot-atmc": __version__, "python": platform.python_version()}
    return found | {package: metadata.version(package) for package in _PACKAGES}
