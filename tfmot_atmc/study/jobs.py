# SPDX-License-Identifier: Apache-2.0
"""The jobs of a study: each stage of training once, each finished model attacked once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tfmot_atmc import attacks, methods, recipes
from tfmot_atmc.constraints import CubicBudget
from tfmot_atmc.constraints.floors import FLOORS
from tfmot_atmc.methods.objectives import AdversarialLoss
from tfmot_atmc.recipes.defaults import defaults
from tfmot_atmc.recipes.run import Stage
from tfmot_atmc.study.description import Description
from tfmot_atmc.study.entries import DENSE, AttackEntry, MethodEntry

__all__ = ["Job", "expand", "method_stages", "variant"]


@dataclasses.dataclass(frozen=True)
class Job:
    """One piece of work whose result is kept.

    Attributes:
        name: readable, and unique by the digest at its end; the name of its folder.
        digest: of all that the result depends on.
        configuration: that, as plain values.
        needs: name of the job whose model it starts from, or None.
        stages: for training, all stages from the dense start to the one trained here.
        row: for measuring, what the rows of the results say of the model.
        cost: about how long it takes, in units of its own.
    """

    name: str
    digest: str
    configuration: Mapping[str, Any]
    needs: str | None
    stages: tuple[Stage, ...] = ()
    row: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cost: float = 1.0


def expand(description: Description) -> dict[str, Job]:
    """Returns the jobs of a study by name, each after the one it needs.

    A stage that several methods, ratios or bits have in common, with all before it, is one job.

    Args:
        description: the study.

    Raises:
        ValueError: if a method or an attack does not take its arguments.
    """
    found: dict[str, Job] = {}
    for data in description.data:
        alone = dataclasses.replace(description, data=(data,))
        tests = [(entry, entry.make(data)) for entry in alone.test]
        for model in alone.models_for(data):
            for entry in alone.training_for(data):
                for seed in alone.seeds:
                    where = {"data": data, "model": model, "training": entry.name, "seed": seed}
                    run = _run(alone, where, attacks.serialize(entry.make(data)))
                    _expand_run(alone, where, run, tests, found)
    return found


def variant(row: Mapping[str, Any]) -> str:
    """Returns how a method, its bits and its quantisation are called together.

    Args:
        row: with `method`, `bits` and `quantized`.

    Example:

    >>> variant({"method": "atmc", "bits": 8, "quantized": ""})
    'atmc-8'
    >>> variant({"method": "al0", "bits": 8, "quantized": "uniform"})
    'al0 + uniform-8'
    """
    if row["quantized"]:
        return f"{row['method']} + {row['quantized']}-{row['bits']}"
    return row["method"] if row["bits"] == 32 else f"{row['method']}-{row['bits']}"


def method_stages(
    entry: MethodEntry, ratio: float, bits: int, description: Description
) -> list[Stage]:
    """Returns the stages of a method after the dense start.

    Methods without stages of their own have as many epochs and steps, at the same rates and under
    the same attacks, as ATMC has in its recipe: only the constraint differs.

    Args:
        entry: the method.
        ratio: nonzeros as a ratio of the dense kernels' parameters.
        bits: b of the codebooks; 32 for none.
        description: for epochs, phases and preset; its dataset for the epsilon of attacks.

    Raises:
        ValueError: if the method has no codebooks and `bits` is below 32.
    """
    if bits < 32 and not methods.class_of(entry.method).takes("bits"):
        raise ValueError(f"The method {entry.name!r} has no codebooks. Received bits={bits}.")
    stages = entry.make(ratio, bits).stages(
        description.epochs,
        description.preset,
        phases=description.phases,
        finish=description.finish and bits == 32,
    )
    return [_adapted(stage, entry, description) for stage in stages]


def _adapted(stage: Stage, entry: MethodEntry, description: Description) -> Stage:
    """Returns a stage with what an entry of the description asks for."""
    method = stage.method
    if entry.arguments and isinstance(method, methods.class_of(entry.method)):
        method = type(method).from_config({**method.get_config(), **entry.arguments})
    if description.floors is not None and _has_floors(method):
        method = method.but(floors=description.floors)
    if not method.adversarial:
        if entry.attack is not None:
            raise ValueError(f"{entry.name!r} trains on clean inputs and takes no `attack`.")
        stage = stage.on_clean_inputs()
    elif description.objective == "trades":
        stage = stage.with_objective_of_the_run()
    elif description.clean_weight is not None and stage.objective is not None:
        stage = dataclasses.replace(stage, objective=AdversarialLoss(description.clean_weight))
    stage = stage.with_optimizer(entry.optimizer or stage.optimizer)
    return dataclasses.replace(
        stage,
        attack=None if entry.attack is None else entry.attack.make(description.data[0]),
        method=method,
        learning_rate=stage.learning_rate * entry.learning_rate,
        batch_size=description.batch_size or stage.batch_size,
    )


def _has_floors(method: Any) -> bool:
    """Whether a method has one budget over all layers, of which some may be assured to each."""
    config = method.get_config()
    return "floors" in config and config["layer_exponent"] is None and config.get("growth") is None


def _run(
    description: Description, where: Mapping[str, Any], attack: dict[str, Any]
) -> dict[str, Any]:
    """Returns what all stages of one run have in common."""
    known = defaults(where["data"])
    return {
        "data": where["data"],
        "limit": description.limit,
        "validation_fraction": known.validation_fraction,
        "augment": known.augment,
        "model": where["model"],
        "attack": attack,
        "objective": description.objective,
        "seed": where["seed"],
        "deterministic": description.deterministic,
    }


def _expand_run(
    description: Description,
    where: dict[str, Any],
    run: dict[str, Any],
    tests: list[tuple[AttackEntry, attacks.Attack]],
    found: dict[str, Job],
) -> None:
    """Adds the jobs of one network, dataset, training attack and seed."""
    dense = recipes.dense_stage(description.dense_epochs, description.preset)
    dense = dataclasses.replace(dense, batch_size=description.batch_size or dense.batch_size)
    labels = where | {"dense_epochs": description.dense_epochs}

    def measure(trained: Job, quantize: Any = None, **row: Any) -> None:
        row = labels | row | {"quantized": quantize[0] if quantize else ""}
        job = _measuring(description, trained, tests, quantize, row)
        found.setdefault(job.name, job)

    start = _training(run, (dense,), None, found)
    measure(start, method=DENSE, ratio=1.0, bits=32, epochs=0)
    for entry in description.methods:
        if entry.only_starts:
            continue
        for ratio, bits, stages in _paths(entry, dense, description):
            narrows = methods.class_of(entry.method).narrows
            own = {**run, "narrow": ratio} if narrows else run
            job = _training(own, stages[:1], None, found)
            for end in range(2, len(stages) + 1):
                job = _training(own, stages[:end], job, found)
            row = {"method": entry.name, "ratio": ratio, "bits": bits}
            later = stages[1:] if methods.name_of(stages[0].method) == DENSE else stages
            row["epochs"] = sum(stage.epochs for stage in later)
            measure(job, **row)
            if bits == 32:
                for how in description.quantize_afterwards:
                    for few in (b for b in description.bits if b < 32):
                        measure(job, (how, few), **{**row, "bits": few})


def _paths(
    entry: MethodEntry, dense: Stage, description: Description
) -> Iterator[tuple[float, int, tuple[Stage, ...]]]:
    """Yields each ratio and bits of a method with all its stages, the dense start first."""
    ratios = description.ratios_for(entry)
    before = _start(entry, dense, description)
    for ratio in sorted(ratios, reverse=True) if description.chain else ratios:
        for bits in entry.bits_in(description.bits):
            yield ratio, bits, before + _linked(entry, ratio, bits, before, description)
        if description.chain:
            before += _link(entry, ratio, before, description)


def _start(entry: MethodEntry, dense: Stage, description: Description) -> tuple[Stage, ...]:
    """Returns the stages before a method's first ratio: the dense start, or another's chain."""
    ratios = description.ratios_for(entry)
    if entry.after is None:
        method = entry.make(ratios[0])
        if not method.starts_dense:
            return ()
        return (dense if method.adversarial else dense.on_clean_inputs(),)
    other = next(method for method in description.methods if method.name == entry.after)
    before = _start(other, dense, description)
    for ratio in sorted(description.ratios_for(other), reverse=True):
        before += _link(other, ratio, before, description)
    return before


def _link(
    entry: MethodEntry, ratio: float, before: tuple[Stage, ...], description: Description
) -> tuple[Stage, ...]:
    """Returns the stages of one ratio from which the next one goes on."""
    return _linked(entry, ratio, 32, before, dataclasses.replace(description, finish=False))


def _linked(
    entry: MethodEntry,
    ratio: float,
    bits: int,
    before: tuple[Stage, ...],
    description: Description,
) -> tuple[Stage, ...]:
    """Returns the stages of one ratio, that are to follow others.

    In a chain, names tell the ratios apart, and a budget falls from where the last one ended:
    at the rate of pruning, networks that were sparse already do not survive growing dense again.
    """
    stages = method_stages(entry, ratio, bits, description)
    if description.chain:
        end = getattr(before[-1].method, "ratio", None) if before else None
        stages = [
            dataclasses.replace(
                stage, name=f"{stage.name}-{ratio:g}", method=_falling_from(end, stage.method)
            )
            for stage in stages
        ]
    return tuple(stages)


def _falling_from(ratio: float | None, method: methods.Method) -> methods.Method:
    """Returns a method whose cubic budget, if it has one, begins at a ratio."""
    schedule = getattr(method, "schedule", None)
    if ratio is None or not isinstance(schedule, CubicBudget):
        return method
    lower = CubicBudget(**{**schedule.get_config(), "initial_ratio": ratio})
    return method.but(schedule=lower)


def _training(
    run: Mapping[str, Any], stages: tuple[Stage, ...], before: Job | None, found: dict[str, Job]
) -> Job:
    """Returns the job of the last of some stages, the known one where there is one."""
    last = stages[-1]
    configuration = {**run, "stages": [_plain(stage, run["attack"]) for stage in stages]}
    name, digest = _named(f"{run['data']}-{run['model']}-s{run['seed']}-{last.name}", configuration)
    if name in found:
        return found[name]
    attack = attacks.serialize(last.attack) if last.attack else run["attack"]
    steps = attack["config"].get("steps", 1) * last.attack_factor
    cost = (run["limit"] or 50_000) * last.epochs * (1.5 + steps)
    needs = None if before is None else before.name
    found[name] = Job(name, digest, configuration, needs, stages, cost=cost)
    return found[name]


def _measuring(
    description: Description,
    trained: Job,
    tests: list[tuple[AttackEntry, attacks.Attack]],
    quantize: tuple[str, int] | None,
    row: Mapping[str, Any],
) -> Job:
    serialized = [
        {"name": entry.name, "examples": entry.examples, **attacks.serialize(attack)}
        for entry, attack in tests
    ]
    configuration = {
        "trained": trained.digest,
        "quantize": list(quantize) if quantize else None,
        "test": serialized,
        "test_examples": description.test_examples,
        "seed": row["seed"],
    }
    label = variant(row).replace(" ", "")
    where = f"{row['data']}-{row['model']}-s{row['seed']}-{label}-{row['ratio']:g}-measured"
    name, digest = _named(where, configuration)
    examples = min(description.test_examples or 10_000, description.limit or 10_000)
    cost = examples * (1.0 + sum(_effort(attack) for _, attack in tests))
    return Job(name, digest, configuration, trained.name, row=row, cost=cost)


def _effort(attack: attacks.Attack) -> float:
    """Returns about how many gradients an attack takes for an example."""
    parts = getattr(attack, "attacks", None)
    if parts:
        return sum(map(_effort, parts.values()))
    config = attack.get_config()
    steps = config.get("steps") or config.get("queries") or 1
    return float(steps) * (config.get("restarts") or 1)


def _plain(stage: Stage, attack: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stage as plain values, without what changes nothing in it.

    So results that were kept before a setting existed keep their digests.
    """
    values = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
    if stage.attack is None:
        del values["attack"]
    else:
        values["attack"] = attack = attacks.serialize(stage.attack)
    if attack["class_name"] != "ATTA" or stage.first_steps is None:
        del values["first_steps"]
    values["method"] = method = keras.saving.serialize_keras_object(stage.method)
    for name in ("ranks", "separable"):
        if not method["config"].get(name, True):
            del method["config"][name]
    floors = method["config"].pop("floors", None)
    if _has_floors(stage.method) and floors != 0:
        method["config"]["floors"] = FLOORS if floors is None else floors
    return values | {"objective": repr(stage.objective)}


def _named(label: str, configuration: Mapping[str, Any]) -> tuple[str, str]:
    text = json.dumps(configuration, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{label}-{digest[:12]}", digest
