# SPDX-License-Identifier: Apache-2.0
"""The attacks of an evaluation under names of their own, ensembles in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfmot_atmc import attacks as attacks_lib
from tfmot_atmc.attacks import Attack
from tfmot_atmc.tasks import check_attack

__all__ = ["in_parts", "named_attacks"]


def named_attacks(attacks: Any, epsilon: Any) -> dict[str, Attack]:
    """Returns attacks under unique names, in order.

    Args:
        attacks: as in `evaluate_robustness`.
        epsilon: radius for the default attack and for those given by name.

    Raises:
        ValueError: there is none, one lacks its epsilon, or one aims at the true labels.
    """
    if attacks is None:
        if epsilon is None:
            raise ValueError("Pass `attacks=` or, for the default attack, `epsilon=`.")
        attacks = attacks_lib.PGD(epsilon=epsilon, steps=16)
    if isinstance(attacks, Mapping) and "class_name" not in attacks:
        return _checked({str(name): _attack(entry, epsilon) for name, entry in attacks.items()})
    entries = attacks if isinstance(attacks, (list, tuple)) else [attacks]
    named: dict[str, Attack] = {}
    for entry in entries:
        attack = _attack(entry, epsilon)
        steps = getattr(attack, "steps", None)
        base = type(attack).__name__ + (f"-{steps}" if steps else "")
        name, count = base, 1
        while name in named:
            count += 1
            name = f"{base} #{count}"
        named[name] = attack
    return _checked(named)


def _checked(named: dict[str, Attack]) -> dict[str, Attack]:
    if not named:
        raise ValueError("`attacks` is empty. Pass at least one attack.")
    check_attack(*named.values())
    return named


def in_parts(named: dict[str, Attack], classes: int) -> dict[str, Attack]:
    """Returns the attacks with the parts of an ensemble in its place.

    Args:
        named: attacks by name.
        classes: number of classes, on which the parts may depend.
    """
    found: dict[str, Attack] = {}
    for name, attack in named.items():
        parts = attack.parts_for(classes)
        if not parts:
            found[name] = attack
            continue
        prefix = f"{name}: " if len(named) > 1 else ""
        found |= {f"{prefix}{part}": member for part, member in parts.items()}
    return found


def _attack(entry: Any, epsilon: Any) -> Attack:
    if isinstance(entry, str):
        if not attacks_lib.class_of(entry).takes("epsilon"):
            return attacks_lib.get(entry)
        if epsilon is None:
            raise ValueError(f"The attack {entry!r} given by name needs `epsilon=`.")
        return attacks_lib.get(entry, epsilon=epsilon)
    return attacks_lib.get(entry)
