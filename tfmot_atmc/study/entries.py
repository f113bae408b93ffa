# SPDX-License-Identifier: Apache-2.0
"""The entries of a study's description: its methods and its attacks."""

from __future__ import annotations

import dataclasses
import difflib
import fractions
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tfmot_atmc import attacks, methods
from tfmot_atmc.attacks import Attack
from tfmot_atmc.recipes.defaults import defaults
from tfmot_atmc.recipes.stages import check_optimizer

__all__ = [
    "DENSE",
    "AttackEntry",
    "MethodEntry",
    "attack_entries",
    "check_among",
    "method_entry",
    "number",
    "several",
]

DENSE = methods.name_of(methods.DA)
"""How results call the dense start."""

_FRACTION = re.compile(r"\s*[\d.]+\s*/\s*[\d.]+\s*")


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

    def to_dict(self) -> dict[str, Any]:
        """Returns what stands under its name in a file."""
        examples = {} if self.examples is None else {"examples": self.examples}
        return {"attack": self.attack, **self.arguments, **examples}

    def make(self, data: str) -> Attack:
        """Returns the attack for a dataset.

        Args:
            data: the dataset's name, for its epsilon.

        Example:

        >>> float(AttackEntry("a", "pgd", {"steps": 3}).make("mnist").epsilon.round(3))
        0.298
        """
        arguments = {key: number(value) for key, value in self.arguments.items()}
        if attacks.class_of(self.attack).takes("epsilon"):
            arguments.setdefault("epsilon", defaults(data).epsilon)
        try:
            return attacks.get(self.attack, **arguments)
        except TypeError as error:
            raise ValueError(f"The attack {self.name!r} cannot be made: {error}.") from error


@dataclasses.dataclass(frozen=True)
class MethodEntry:
    """One method of a study.

    Attributes:
        name: how it is called in the results.
        method: name of a method, such as `"atmc"`, or of one of your own.
        arguments: further arguments of its constructor, for all stages.
        ratios: its own ratios; None for those of the study.
        bits: its own bits; None for those of the study, if it has codebooks.
        learning_rate: factor on the learning rates of its stages after the dense start.
        optimizer: `"sgd"` or `"adam"` for those stages, at rates that suit it; None for their own.
        after: in a chain, the name of an entry before it: its first ratio goes on from the model
            of that one's last ratio, and not from the dense start.
        attack: training attack of those stages; None for the study's.
    """

    name: str
    method: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ratios: tuple[float, ...] | None = None
    bits: tuple[int, ...] | None = None
    learning_rate: float = 1.0
    optimizer: str | None = None
    after: str | None = None
    attack: AttackEntry | None = None

    def __post_init__(self) -> None:
        methods.class_of(self.method)  # refuses unknown names
        if re.search(r"[-+]\S*\d$| \+ ", self.name) or not self.name:
            raise ValueError(
                f"A method's name must not look like one with bits. Received {self.name!r}."
            )
        if self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` is a factor above 0. Received {self.learning_rate}.")
        if self.optimizer is not None:
            check_optimizer(self.optimizer)

    def make(self, ratio: float, bits: int = 32) -> methods.Method:
        """Returns the method, with those of its arguments that it has.

        Raises:
            ValueError: if it does not take the entry's `arguments`.
        """
        kind = methods.class_of(self.method)
        given = {"ratio": ratio} | ({"bits": bits} if bits < 32 else {})
        given = {name: value for name, value in given.items() if kind.takes(name)}
        try:
            return kind.from_config({**given, **self.arguments})
        except TypeError as error:
            raise ValueError(
                f"The method {self.name!r} does not take its `arguments`: {error}."
            ) from error

    @property
    def only_starts(self) -> bool:
        """Whether the dense start, which every study measures, is all of it."""
        return not self.make(0.5).stages(1, phases="all")

    def bits_in(self, bits: tuple[int, ...]) -> tuple[int, ...]:
        """Returns its bits in a study with `bits`; only 32 where it has no codebooks."""
        if self.bits is not None or methods.class_of(self.method).takes("bits"):
            return self.bits or bits
        return tuple(b for b in bits if b == 32)


def method_entry(entry: Any) -> MethodEntry:
    """Returns a method's entry from what stands in a file: a name, or a mapping."""
    if isinstance(entry, MethodEntry):
        return entry
    if isinstance(entry, str):
        return MethodEntry(entry, entry)
    if not isinstance(entry, Mapping) or "method" not in entry:
        raise ValueError(
            f"An entry of `methods` is a name, or a mapping with `method`. Received {entry!r}."
        )
    check_among("methods", entry, [field.name for field in dataclasses.fields(MethodEntry)])
    values = {"name": entry["method"], **{k: v for k, v in entry.items() if v is not None}}
    for name in ("ratios", "bits"):
        if name in values:
            values[name] = several(name, values[name])
    if "attack" in values:
        values["attack"] = _attack(f"methods: {values['name']}", "attack", values["attack"])
    return MethodEntry(**values)


def attack_entries(name: str, entries: Any) -> tuple[AttackEntry, ...]:
    """Returns attacks from what stands in a file: a mapping of their names."""
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


def several(name: str, value: Any) -> tuple:
    """Returns a tuple; one value stands for itself."""
    if isinstance(value, Mapping):
        raise ValueError(f"`{name}` must be a list. Received {value!r}.")
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def number(value: Any) -> Any:
    """Returns text such as "76/255" as a number, and anything else as it is."""
    if not isinstance(value, str) or not _FRACTION.fullmatch(value):
        return value
    over, under = value.split("/")
    if not float(under):
        raise ValueError(f"{value!r} divides by zero.")
    return float(fractions.Fraction(over.strip()) / fractions.Fraction(under.strip()))


def check_among(name: str, values: Iterable[Any], known: Iterable[str]) -> None:
    """Raises ValueError for the first value that is not known."""
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
