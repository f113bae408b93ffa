# SPDX-License-Identifier: Apache-2.0
"""`atmc evaluate`: accuracy of a .keras, .tflite or C file on clean data and under attack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from absl import flags
from rich.console import Console

from tfmot_atmc import datasets
from tfmot_atmc.attacks import Attack
from tfmot_atmc.cli.demonstration import demonstration_file
from tfmot_atmc.cli.numbers import NumberParser
from tfmot_atmc.evaluation import (
    AdversarialSet,
    evaluate_robustness,
    plot_examples,
    robustness_curve,
)
from tfmot_atmc.recipes.aims import loss_for
from tfmot_atmc.recipes.defaults import OWN, defaults
from tfmot_atmc.recipes.pipeline import load_keras, make_attack, standard_attacks
from tfmot_atmc.recipes.sources import check_units, default_epsilon, load_data, radius_of
from tfmot_atmc.utils.figures import save_figure

__all__ = ["run"]

_DRAWN_FROM = 32
# Where a curve is measured unless told: in radii of the dataset, or in steps or queries.
_RADII = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
_STEPS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


def run(values: flags.FlagValues, operands: list[str], console: Console) -> None:
    """Does what the command is for.

    Args:
        values: the flags.
        operands: the positional arguments.
        console: where to print.
    """
    if values.steps is not None and not values.attack:
        raise ValueError("--steps is for --attack: add --attack pgd.")
    _check_curve(values)
    name = operands[0] if operands else demonstration_file("final.keras", console)
    target = _target(name)
    source = None if values.source is None else load_keras(values.source)
    data = _data(values)
    epsilon = _epsilon(values, data)
    blind = target == name and source is None  # a file, attacked by its outputs alone
    names = values.attack or (["square"] if blind else [])
    ends = {"bounds": data.bounds}
    found: Any = [make_attack(attack, epsilon, values.steps, **ends) for attack in names]
    if values.curve is not None:
        attack = found[0] if found else make_attack("pgd", epsilon, values.steps, **ends)
        _show_curve(values, target, source, data, attack, console)
        return
    report = evaluate_robustness(
        target,
        (data.x_test, data.y_test),
        attacks=found or standard_attacks(epsilon, data.bounds),
        source=source,
        loss=_loss(values, target, source, data),
        batch_size=values.batch_size,
        seed=values.seed,
        checks=values.checks,
        second_opinion=values.second_opinion,
        state=values.state,
        verbose=int(console.is_terminal),
    )
    console.print(str(report), highlight=False, markup=False)
    if values.out is not None:
        report.save(values.out)
    if values.picture is not None:
        first = (found or list(standard_attacks(epsilon, data.bounds).values()))[0]
        made = AdversarialSet.make(
            source if source is not None and first.needs_gradients else target,
            (data.x_test, data.y_test),
            attack=first,
            batch_size=values.batch_size,
            max_examples=_DRAWN_FROM,
            seed=values.seed,
        )
        save_figure(plot_examples(made, target, class_names=data.class_names), values.picture)


def _data(values: flags.FlagValues) -> datasets.Dataset:
    if values.data is not None and values["dataset"].present:
        raise ValueError("Give --dataset or --data, not both.")
    return load_data(
        values.dataset,
        values.data,
        bounds=values.bounds,
        image_size=values.image_size,
        data_dir=values.data_dir,
        limit=values.limit,
    )


def _epsilon(values: flags.FlagValues, data: datasets.Dataset) -> Any:
    usual = defaults(values.dataset if values.data is None else OWN).epsilon
    given = default_epsilon(usual, values.bounds) if values.epsilon is None else values.epsilon
    epsilon = radius_of(given, data)
    check_units(epsilon, data.bounds)
    return epsilon


def _loss(
    values: flags.FlagValues, target: Any, source: Any, data: datasets.Dataset
) -> keras.losses.Loss | None:
    """Returns the loss that decides where there are no classes: several answers, or numbers."""
    if data.task == "classes":
        return None
    if isinstance(target, str) and source is None:
        raise ValueError(
            f"{values.data or values.dataset} holds {data.task}, which only attacks by gradients "
            "raise the loss of: give the file's Keras twin by --source."
        )
    if values.picture is not None:
        raise ValueError("--picture is for data with classes.")
    return loss_for(target if source is None else source, data)


def _check_curve(values: flags.FlagValues) -> None:
    if values.curve is None and values.values:
        raise ValueError("--values is for --curve: add --curve epsilon or --curve steps.")
    if values.curve is None:
        return
    if len(values.attack) > 1:
        raise ValueError(f"A curve is of one --attack. Received {','.join(values.attack)}.")
    if values.state is not None:
        raise ValueError("--state is for an evaluation, not for a --curve.")
    if values.curve == "steps" and values.steps is not None:
        raise ValueError("--curve steps takes its numbers of steps from --values, not --steps.")


def _show_curve(
    values: flags.FlagValues,
    target: Any,
    source: Any,
    data: datasets.Dataset,
    attack: Attack,
    console: Console,
) -> None:
    """Measures a curve, prints it, and writes it where asked."""
    given: list[float] = [NumberParser().parse(value) for value in values.values]
    if values.curve == "epsilon":
        if "epsilon" not in attack.get_config():
            raise ValueError(f"{type(attack).__name__} has no epsilon to vary.")
        radius = float(attack.epsilon)
        where: dict[str, Any] = {"epsilons": given or [share * radius for share in _RADII]}
    else:
        if not all(value.is_integer() and value >= 1 for value in given):
            raise ValueError(f"--curve steps needs whole --values of at least 1. Received {given}.")
        where = {"steps": given or _STEPS}
    curve = robustness_curve(
        target,
        (data.x_test, data.y_test),
        attack=attack,
        source=source,
        batch_size=values.batch_size,
        seed=values.seed,
        checks=values.checks,
        second_opinion=values.second_opinion,
        verbose=int(console.is_terminal),
        **where,
    )
    console.print(str(curve), highlight=False, markup=False)
    if values.out is not None:
        curve.save(values.out)
    if values.picture is not None:
        save_figure(curve.plot(), values.picture)


def _target(name: str) -> Any:
    if Path(name).suffix == ".keras":
        return load_keras(name)
    if Path(name).suffix not in (".tflite", ".c"):
        raise ValueError(f"Expected a .keras, .tflite or C file. Received {name!r}.")
    if not Path(name).is_file():
        raise FileNotFoundError(f"There is no file {name!r}.")
    return name
