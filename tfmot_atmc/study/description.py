# SPDX-License-Identifier: Apache-2.0
"""What a study runs, as a small YAML file says it."""

from __future__ import annotations

import dataclasses
import difflib
import fractions
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tfmot_atmc import attacks, models
from tfmot_atmc.attacks import Attack
from tfmot_atmc.objectives import AdversarialLoss
from tfmot_atmc.presets import defaults
from tfmot_atmc.quantization import WAYS
from tfmot_atmc.recipes import PRESETS
from tfmot_atmc.settings import METHODS
from tfmot_atmc.stages import check_optimizer

__all__ = ["AttackEntry", "Description", "MethodEntry", "load_description"]

_OBJECTIVES = ("adversarial", "half", "trades")
_PHASES = ("all", "pruning")
_FRACTION = re.compile(r"\s*[\d.]+\s*/\s*[\d.]+\s*")


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """One method of a study.

    Attributes:
        name: how it is called in the results.
        method: `"atmc"`, `"al0"`, `"alr"`, `"ap"`, `"nap"` or `"da"`.
        arguments: further arguments of its constructor, for all stages.
        ratios: its own ratios; None for those of the study.
        bits: its own bits; None for those of the study.
        learning_rate: factor on the learning rates of its stages after the dense start.
        optimizer: `"sgd"` or `"adam"` for those stages, at rates that suit it; None for their own.
        after: in a chain, the name of an entry before it: its first ratio goes on from the model
            of that one's last ratio, and not from the dense start.
    """

    name: str
    method: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ratios: tuple[float, ...] | None = None
    bits: tuple[int, ...] | None = None
    learning_rate: float = 1.0
    optimizer: str | None = None
    after: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"`methods` must be among {METHODS}. Received {self.method!r}."
                + _suggestion(self.method, METHODS)
            )
        if re.search(r"[-+]\S*\d$| \+ ", self.name) or not self.name:
            raise ValueError(
                f"A method's name must not look like one with bits. Received {self.name!r}."
            )
        if self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` is a factor above 0. Received {self.learning_rate}.")
        if self.optimizer is not None:
            check_optimizer(self.optimizer)


@dataclasses.dataclass(frozen=True)
class AttackEntry:
    """One attack of a study, for training or for test.

    Attributes:
        name: how it is called in the results.
        attack: name as in `tfmot_atmc.attacks.get`.
        arguments: its arguments; without `epsilon`, that of the data is taken.
        examples: attack only so many test examples; None for all of the study's.
    """

    name: str
    attack: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    examples: int | None = None

    def make(self, data: str) -> Attack:
        """Returns the attack for a dataset.

        Args:
            data: the dataset's name, for its epsilon.

        Example:

        >>> float(AttackEntry("a", "pgd", {"steps": 3}).make("mnist").epsilon.round(3))
        0.298
        """
        arguments = {key: _number(value) for key, value in self.arguments.items()}
        if attacks.class_of(self.attack).takes("epsilon"):
            arguments.setdefault("epsilon", defaults(data).epsilon)
        try:
            return attacks.get(self.attack, **arguments)
        except TypeError as error:
            raise ValueError(f"The attack {self.name!r} cannot be made: {error}.") from error


def _standard_tests() -> tuple[AttackEntry, ...]:
    return (
        AttackEntry("PGD-16", "pgd", {"steps": 16, "rule": "kurakin"}),
        AttackEntry("FGSM", "fgsm"),
    )


@dataclasses.dataclass(frozen=True)
class Description:
    """A study: every combination of its lists is trained and attacked.

    Attributes:
        name: its name; also the title of its page.
        data: names of datasets.
        models: names of networks of `tfmot_atmc.models`; empty for each dataset's own.
        methods: what is compared. The dense start is always measured, as `"da"`.
        ratios: nonzeros (for low rank: parameters) as ratios of the dense kernels' parameters.
        bits: 32 for none; below it, the same models are also tied to codebooks in training, and
            those without are quantised afterwards.
        quantize_afterwards: how finished 32-bit models are quantised to the `bits` below 32,
            without training: `"uniform"`, `"zero_kmeans"`.
        training: attacks used in training; empty for PGD with the dataset's number of steps.
        test: attacks used in test. The first gives "the robust accuracy" of figures.
        seeds: seeds of weights, batches and attacks.
        dense_epochs: epochs of the dense start.
        epochs: epochs of pruning; hardening and polishing take a fourth more each, and a codebook
            a twelfth, for every method alike.
        chain: start each ratio from the same method's finished model of the next larger one, and
            not from the dense start; its epochs are then those of all ratios down to it.
        phases: `"all"`, or `"pruning"` to leave out hardening and polishing.
        finish: train 32-bit models as long as those with codebooks, in the same last stage without
            codebooks, so that what is quantised afterwards has seen as much.
        preset: `"default"`, or `"paper"` for the stages of the authors' code.
        objective: `"adversarial"` or `"half"`, of stages that have none of their own; or
            `"trades"`, which goes with the attack of that name, of all that train under attack.
        clean_weight: share of the loss on clean inputs in all stages that train under attack and
            have one of their own, such as pruning; 0 as in the paper. None for the stages' own.
        batch_size: examples a step; None for the stages' own.
        limit: at most so many examples in each split; None for all.
        test_examples: at most so many test examples; None for all.
        compare: pairs of names whose accuracies are compared seed by seed; empty for all methods
            against the first ATMC.
        deterministic: ask TensorFlow for kernels that give the same bits every time, which a GPU
            needs for it and pays for in speed.

    Example:

    >>> Description(methods=("al0", "atmc"), seeds=(0, 1)).methods[0].name
    'al0'
    """

    name: str = "digits"
    data: tuple[str, ...] = ("digits",)
    models: tuple[str, ...] = ()
    methods: tuple[MethodEntry, ...] = ("ap", "al0", "atmc")  # type: ignore[assignment]
    ratios: tuple[float, ...] = (0.1, 0.05)
    bits: tuple[int, ...] = (32, 4)
    quantize_afterwards: tuple[str, ...] = ()
    training: tuple[AttackEntry, ...] = ()
    test: tuple[AttackEntry, ...] = dataclasses.field(default_factory=_standard_tests)
    seeds: tuple[int, ...] = (0, 1)
    dense_epochs: int = 8
    epochs: int = 8
    chain: bool = False
    phases: str = "all"
    finish: bool = False
    preset: str = "default"
    objective: str = "adversarial"
    clean_weight: float | None = None
    batch_size: int | None = None
    limit: int | None = None
    test_examples: int | None = None
    compare: tuple[tuple[str, str], ...] = ()
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "models", "ratios", "bits", "quantize_afterwards", "seeds"):
            _set(self, name, _several(name, getattr(self, name)))
        _set(self, "ratios", tuple(float(_number(ratio)) for ratio in self.ratios))
        _set(self, "methods", tuple(map(_method, _several("methods", self.methods))))
        _set(self, "training", _attacks("training", self.training))
        _set(self, "test", _attacks("test", self.test))
        pairs = tuple(tuple(pair) for pair in _several("compare", self.compare))
        _set(self, "compare", pairs)
        self._check()

    def _check(self) -> None:
        for name in ("data", "methods", "ratios", "bits", "seeds", "test"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` of a study must not be empty.")
        for name in ("data", "models", "ratios", "bits", "seeds", "quantize_afterwards"):
            _check_distinct(name, getattr(self, name))
        for name in ("methods", "training", "test"):
            _check_distinct(name, [entry.name for entry in getattr(self, name)])
        _check_among("models", self.models, models.names())
        _check_among("quantize_afterwards", self.quantize_afterwards, WAYS)
        _check_among("phases", [self.phases], _PHASES)
        _check_among("preset", [self.preset], PRESETS)
        _check_among("objective", [self.objective], _OBJECTIVES)
        for name in ("dense_epochs", "epochs", "batch_size", "limit", "test_examples"):
            value = getattr(self, name)
            optional = value is None and not name.endswith("epochs")
            if not optional and (not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` must be an integer of at least 1. Received {value!r}.")
        if any(not isinstance(seed, int) or seed < 0 for seed in self.seeds):
            raise ValueError(f"`seeds` must be integers of at least 0. Received {self.seeds}.")
        self._check_together()

    def _check_together(self) -> None:
        """Refuses entries that do not go with each other."""
        if self.clean_weight is not None:
            AdversarialLoss(self.clean_weight)
            if self.objective == "trades":
                raise ValueError("`clean_weight` has no meaning with `objective: trades`.")
        if self.finish and self.preset == "paper":
            raise ValueError("`finish` goes with the stages of `preset: default` only.")
        for test in self.test:
            if issubclass(attacks.class_of(test.attack), attacks.ATTA):
                raise ValueError(
                    f"The attack {test.name!r} of `test` is ATTA, which carries perturbations "
                    "through a training and measures nothing. Use another, such as pgd."
                )
        if any(len(pair) != 2 for pair in self.compare):
            raise ValueError(f"`compare` must be pairs of names. Received {self.compare}.")
        for number, entry in enumerate(self.methods):
            if entry.after is not None:
                self._check_after(entry, {other.name: other for other in self.methods[:number]})
        if self.quantize_afterwards and not any(bits < 32 for bits in self.bits):
            raise ValueError("`quantize_afterwards` needs `bits` below 32 to quantise to.")

    def _check_after(self, entry: MethodEntry, before: Mapping[str, MethodEntry]) -> None:
        """Refuses an entry that cannot go on from the one it names."""
        if not self.chain:
            raise ValueError(f"`after` of {entry.name!r} needs `chain: true`.")
        _check_among(f"`after` of {entry.name!r}", [entry.after], before)
        first, last = max(self.ratios_for(entry)), min(self.ratios_for(before[str(entry.after)]))
        if first >= last:
            raise ValueError(
                f"{entry.name!r} goes on from {entry.after!r} at {last}, so its `ratios` must be "
                f"below that. Received {self.ratios_for(entry)}."
            )

    def ratios_for(self, entry: MethodEntry) -> tuple[float, ...]:
        """Returns the ratios of a method."""
        return entry.ratios or self.ratios

    def models_for(self, data: str) -> tuple[str, ...]:
        """Returns the networks trained on a dataset."""
        return self.models or (defaults(data).model,)

    def training_for(self, data: str) -> tuple[AttackEntry, ...]:
        """Returns the training attacks on a dataset."""
        return self.training or (AttackEntry("pgd", "pgd", {"steps": defaults(data).steps}),)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain Python values, from which `from_dict` makes the same description."""
        plain = dataclasses.asdict(self)
        for name in ("training", "test"):
            plain[name] = {
                entry.name: {"attack": entry.attack, **entry.arguments}
                | ({} if entry.examples is None else {"examples": entry.examples})
                for entry in getattr(self, name)
            }
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Description:
        """Returns a description from what a YAML file holds.

        Args:
            values: the file's content.

        Raises:
            ValueError: for unknown entries and values out of range.

        Example:

        >>> Description.from_dict({"name": "tiny", "ratios": 0.1}).ratios
        (0.1,)
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"A study's description must be a mapping. Received {values!r}.")
        known = [field.name for field in dataclasses.fields(cls)]
        _check_among("the description", values, known)
        return cls(**{key: value for key, value in values.items() if value is not None})


def load_description(path: str | Path) -> Description:
    """Reads the description of a study from a YAML file.

    Args:
        path: the file; its name without ending is the study's where the file gives none.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not YAML, or does not describe a study.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        values = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if isinstance(values, dict):
        values = {"name": file.stem, **values}
    try:
        return Description.from_dict(values or {})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _set(description: Description, name: str, value: Any) -> None:
    object.__setattr__(description, name, value)


def _several(name: str, value: Any) -> tuple:
    """Returns a tuple; one value stands for itself."""
    if isinstance(value, Mapping):
        raise ValueError(f"`{name}` must be a list. Received {value!r}.")
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _number(value: Any) -> Any:
    """Returns text such as "76/255" as a number, and anything else as it is."""
    if not isinstance(value, str) or not _FRACTION.fullmatch(value):
        return value
    over, under = value.split("/")
    if not float(under):
        raise ValueError(f"{value!r} divides by zero.")
    return float(fractions.Fraction(over.strip()) / fractions.Fraction(under.strip()))


def _method(entry: Any) -> MethodEntry:
    if isinstance(entry, MethodEntry):
        return entry
    if isinstance(entry, str):
        return MethodEntry(entry, entry)
    if not isinstance(entry, Mapping) or "method" not in entry:
        raise ValueError(
            f"An entry of `methods` is a name, or a mapping with `method`. Received {entry!r}."
        )
    _check_among("methods", entry, [field.name for field in dataclasses.fields(MethodEntry)])
    values = {"name": entry["method"], **{k: v for k, v in entry.items() if v is not None}}
    for name in ("ratios", "bits"):
        if name in values:
            values[name] = _several(name, values[name])
    return MethodEntry(**values)


def _attacks(name: str, entries: Any) -> tuple[AttackEntry, ...]:
    if isinstance(entries, Mapping):
        entries = [_attack(name, key, value) for key, value in entries.items()]
    found = tuple(entries)
    if not all(isinstance(entry, AttackEntry) for entry in found):
        raise ValueError(
            f"`{name}` must map names to attacks, such as {{PGD-16: {{attack: pgd, steps: 16}}}}."
        )
    return found


def _attack(where: str, name: str, values: Any) -> AttackEntry:
    if not isinstance(values, Mapping) or "attack" not in values:
        raise ValueError(f"`{where}`: {name} must be a mapping with `attack`. Received {values!r}.")
    arguments = {key: value for key, value in values.items() if key not in ("attack", "examples")}
    return AttackEntry(str(name), values["attack"], arguments, values.get("examples"))


def _check_distinct(name: str, values: Iterable[Any]) -> None:
    listed = list(values)
    if len(set(listed)) != len(listed):
        raise ValueError(f"`{name}` holds one entry twice: {listed}.")


def _check_among(name: str, values: Iterable[Any], known: Iterable[str]) -> None:
    allowed = list(known)
    for value in values:
        if value not in allowed:
            raise ValueError(
                f"Unknown in {name}: {value!r}. Known: {', '.join(allowed)}."
                + _suggestion(str(value), allowed)
            )


def _suggestion(value: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(known), 1)
    return f" Did you mean {near[0]!r}?" if near else ""
