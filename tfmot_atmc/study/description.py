# SPDX-License-Identifier: Apache-2.0
"""What a study runs, as a small YAML file says it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tfmot_atmc import attacks, models
from tfmot_atmc.compression.quantization import WAYS
from tfmot_atmc.methods.objectives import AdversarialLoss
from tfmot_atmc.recipes.defaults import defaults
from tfmot_atmc.recipes.run import PRESETS
from tfmot_atmc.study.entries import (
    AttackEntry,
    MethodEntry,
    attack_entries,
    check_among,
    method_entry,
    number,
    several,
)
from tfmot_atmc.utils.own_files import import_file

__all__ = ["Description", "load_description"]

_OBJECTIVES = ("adversarial", "half", "trades")
_PHASES = ("all", "pruning")


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
        bits: 32 for none; below it, the same models are also tied to codebooks in training, if the
            method has them, and those without are quantised afterwards.
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
        floors: share of every budget of nonzeros that is assured to layers; 0 for one budget over
            all of them, under which all kept studies ran; None for the methods' own.
        batch_size: examples a step; None for the stages' own.
        limit: at most so many examples in each split; None for all.
        test_examples: at most so many test examples; None for all.
        compare: pairs of names whose accuracies are compared seed by seed; empty for all methods
            against the first ATMC.
        imports: Python files of methods and attacks of your own; in a YAML file they are called
            `import`, and found from where it lies.
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
    floors: float | None = None
    batch_size: int | None = None
    limit: int | None = None
    test_examples: int | None = None
    compare: tuple[tuple[str, str], ...] = ()
    deterministic: bool = False
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _set(self, "imports", tuple(dict.fromkeys(several("import", self.imports))))
        self.load_own_files()
        for name in ("data", "models", "ratios", "bits", "quantize_afterwards", "seeds"):
            _set(self, name, several(name, getattr(self, name)))
        _set(self, "ratios", tuple(float(number(ratio)) for ratio in self.ratios))
        _set(self, "methods", tuple(map(method_entry, several("methods", self.methods))))
        _set(self, "training", attack_entries("training", self.training))
        _set(self, "test", attack_entries("test", self.test))
        pairs = tuple(tuple(pair) for pair in several("compare", self.compare))
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
        check_among("models", self.models, models.names())
        check_among("quantize_afterwards", self.quantize_afterwards, WAYS)
        check_among("phases", [self.phases], _PHASES)
        check_among("preset", [self.preset], PRESETS)
        check_among("objective", [self.objective], _OBJECTIVES)
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
        for i, entry in enumerate(self.methods):
            if entry.after is not None:
                self._check_after(entry, {other.name: other for other in self.methods[:i]})
        for train in (*self.training, *(entry.attack for entry in self.methods)):
            if train is not None and train.examples is not None:
                raise ValueError(
                    f"`examples` is of attacks in test; training takes all. Drop it from {train}."
                )
        if self.quantize_afterwards and not any(bits < 32 for bits in self.bits):
            raise ValueError("`quantize_afterwards` needs `bits` below 32 to quantise to.")

    def _check_after(self, entry: MethodEntry, before: Mapping[str, MethodEntry]) -> None:
        """Refuses an entry that cannot go on from the one it names."""
        if not self.chain:
            raise ValueError(f"`after` of {entry.name!r} needs `chain: true`.")
        check_among(f"`after` of {entry.name!r}", [entry.after], before)
        first, last = max(self.ratios_for(entry)), min(self.ratios_for(before[str(entry.after)]))
        if first >= last:
            raise ValueError(
                f"{entry.name!r} goes on from {entry.after!r} at {last}, so its `ratios` must be "
                f"below that. Received {self.ratios_for(entry)}."
            )

    def load_own_files(self) -> None:
        """Imports the files of the user's own, in this process."""
        for path in self.imports:
            import_file(path)

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
            plain[name] = {entry.name: entry.to_dict() for entry in getattr(self, name)}
        for values, entry in zip(plain["methods"], self.methods, strict=True):
            values["attack"] = entry.attack and entry.attack.to_dict()
        imports = plain.pop("imports")
        plain |= {"import": imports} if imports else {}
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
        named = {field.name: field.name for field in dataclasses.fields(cls)}
        named["import"] = named.pop("imports")  # which as a keyword is no name of a field
        check_among("the description", values, named)
        return cls(**{named[key]: value for key, value in values.items() if value is not None})


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
        files = several("import", values.get("import") or ())
        if files:
            values["import"] = [str(file.resolve().parent / name) for name in files]
    try:
        return Description.from_dict(values or {})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _set(description: Description, name: str, value: Any) -> None:
    object.__setattr__(description, name, value)


def _check_distinct(name: str, values: Iterable[Any]) -> None:
    listed = list(values)
    if len(set(listed)) != len(listed):
        raise ValueError(f"`{name}` holds one entry twice: {listed}.")
