# SPDX-License-Identifier: Apache-2.0
"""Attacks by name, and attacks as plain dictionaries."""

from __future__ import annotations

from typing import Any

from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.utils.registry import check_arguments, parameters

__all__ = ["class_of", "get", "names", "serialize"]


def get(identifier: Any, **arguments: Any) -> Attack:
    """Returns an attack from its name, its serialised form, or itself.

    Args:
        identifier: an `Attack`; a name such as `"pgd"`, in any case; or a dict
            `{"class_name": name, "config": arguments}`.
        **arguments: constructor arguments, with a name only.

    Returns:
        An `Attack`.

    Raises:
        ValueError: the name is unknown.
        TypeError: `identifier` is of another type, an argument is unknown, or one is missing.

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
        config = {**identifier.get("config", {}), **arguments}
        cls = class_of(identifier["class_name"])
        check_arguments(cls.__name__, config, parameters(cls))
        return cls.from_config(config)
    if isinstance(identifier, str):
        cls = class_of(identifier)
        check_arguments(cls.__name__, arguments, parameters(cls))
        return cls(**arguments)
    raise TypeError(
        "An attack must be an Attack, a name or a dict with 'class_name' and 'config'. "
        f"Received {identifier!r}."
    )


def serialize(attack: Attack) -> dict[str, Any]:
    """Returns `{"class_name", "config"}`, ready for JSON, from which `get` makes the same attack.

    Raises:
        ValueError: the attack has a custom loss, which has no plain form, or its class is not
            registered or does not describe it.
    """
    config = attack.get_config()
    again = type(attack).from_config(config)
    lacking = [
        name
        for name in parameters(type(attack))
        if repr(getattr(again, name, None)) != repr(getattr(attack, name, None))
    ]
    if lacking:
        raise ValueError(
            f"{type(attack).__name__}.get_config() lacks {lacking}, so the attack cannot be made "
            "again. Return the constructor's arguments there, beside those of super().get_config()."
        )
    Attack.registry.name_of(type(attack))  # refuses what could not be found again
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
    return Attack.registry.names()


def class_of(name: str) -> type[Attack]:
    """Returns the class of an attack from its name, in any case.

    Args:
        name: a name such as `"pgd"`.

    Raises:
        ValueError: the name is unknown.

    Example:
    >>> class_of("wrm").takes("epsilon"), class_of("pgd").takes("epsilon")
    (False, True)
    """
    return Attack.registry.find(name)
