# SPDX-License-Identifier: Apache-2.0
"""Attacks by name, and attacks as plain dictionaries."""

from __future__ import annotations

from typing import Any

from tfmot_atmc.attacks.apgd import APGD, APGDT
from tfmot_atmc.attacks.atta import ATTA
from tfmot_atmc.attacks.autoattack import AutoAttack
from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.fab import FAB, FABT
from tfmot_atmc.attacks.fgsm import FGSM, RFGSM
from tfmot_atmc.attacks.mifgsm import MIFGSM
from tfmot_atmc.attacks.pgd import BIM, PGD
from tfmot_atmc.attacks.square import Square
from tfmot_atmc.attacks.trades import TRADES
from tfmot_atmc.attacks.wrm import WRM

__all__ = ["class_of", "get", "names", "serialize"]

_ATTACKS: dict[str, type[Attack]] = {
    "apgd": APGD,
    "apgdt": APGDT,
    "atta": ATTA,
    "autoattack": AutoAttack,
    "bim": BIM,
    "fab": FAB,
    "fabt": FABT,
    "fgsm": FGSM,
    "mifgsm": MIFGSM,
    "pgd": PGD,
    "rfgsm": RFGSM,
    "square": Square,
    "trades": TRADES,
    "wrm": WRM,
}


def get(identifier: Any, **arguments: Any) -> Attack:
    """Returns an attack from its name, its serialised form, or itself.

    Args:
        identifier: An `Attack`; a name such as `"pgd"`, in any case; or a dict
            `{"class_name": name, "config": arguments}`.
        **arguments: Constructor arguments, with a name only.

    Returns:
        An `Attack`.

    Raises:
        ValueError: the name is unknown.
        TypeError: `identifier` is of another type, or a required argument is missing.

    Example:
    >>> get("fgsm", epsilon=0.1).epsilon
    array(0.1)
    >>> get(serialize(get("PGD", epsilon=0.1, steps=3))).steps
    3
    """
    if isinstance(identifier, Attack):
        if arguments:
            raise TypeError(f"Arguments {sorted(arguments)} do not apply to an existing attack.")
        return identifier
    if isinstance(identifier, dict) and "class_name" in identifier:
        return class_of(identifier["class_name"]).from_config(
            {**identifier.get("config", {}), **arguments}
        )
    if isinstance(identifier, str):
        return class_of(identifier)(**arguments)
    raise TypeError(
        "An attack must be an Attack, a name or a dict with 'class_name' and 'config'. "
        f"Received {identifier!r}."
    )


def serialize(attack: Attack) -> dict[str, Any]:
    """Returns `{"class_name", "config"}`, ready for JSON, from which `get` makes the same attack.

    Raises:
        ValueError: the attack has a custom loss, which has no plain form.
    """
    config = attack.get_config()
    if config.get("loss") is not None:
        raise ValueError(
            f"{type(attack).__name__} has the custom loss {config['loss']!r}, which cannot be "
            "serialised. Rebuild the attack in code, or use `loss=None`."
        )
    return {"class_name": type(attack).__name__, "config": config}


def names() -> list[str]:
    """Returns the names that `get` knows, sorted.

    Example:

    >>> "pgd" in names()
    True
    """
    return sorted(_ATTACKS)


def class_of(name: str) -> type[Attack]:
    """Returns the class of an attack from its name, in any case.

    Args:
        name: A name such as `"pgd"`.

    Raises:
        ValueError: the name is unknown.

    Example:
    >>> class_of("wrm").takes("epsilon"), class_of("pgd").takes("epsilon")
    (False, True)
    """
    if name.lower() not in _ATTACKS:
        raise ValueError(f"Unknown attack {name!r}. Known: {', '.join(sorted(_ATTACKS))}.")
    return _ATTACKS[name.lower()]
