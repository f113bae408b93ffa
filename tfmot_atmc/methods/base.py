# SPDX-License-Identifier: Apache-2.0
"""The method interface."""

from __future__ import annotations

from typing import Any

import keras

from tfmot_atmc.attacks import Attack
from tfmot_atmc.constraints import Constraint
from tfmot_atmc.kernels import Kernel, PlainKernel
from tfmot_atmc.utils.configurable import Configurable

_METHODS: dict[str, type[Method]] = {}


class Method(Configurable):
    """How kernels are made, and which constraints they must satisfy.

    A new method is a subclass with a constructor, `constraints` and, where kernels are not plain,
    `kernel_for`. Subclassing registers it, for saving and for the command line, under its class
    name in lower case.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _METHODS[cls.__name__.lower()] = cls

    adversarial: bool = True
    """Whether the method trains under attack; one that does not refuses an attack for training."""

    def check_attack(self, attack: Attack | None) -> None:
        """Raises ValueError if there is an attack and the method trains on clean inputs."""
        if attack is not None and not self.adversarial:
            raise ValueError(
                f"{type(self).__name__} trains on clean inputs. Drop `attack`; a "
                "`validation_attack` still measures robustness."
            )

    def kernel_for(self, factorizable: bool) -> Kernel:
        """Returns the kernel for a layer's weight, given whether it may be factorised."""
        return PlainKernel()

    def constraints(self) -> list[Constraint]:
        """Returns new constraints, in the order in which they project."""
        return []


def names() -> list[str]:
    """Returns the names of all registered methods, as `get` takes them."""
    return sorted(_METHODS)


def get(identifier: Any, **arguments: Any) -> Method:
    """Returns a method.

    Args:
        identifier: a `Method`, its name (such as `"atmc"`), or a serialised method.
        **arguments: constructor arguments for a name; those the method does not take are refused.

    Returns:
        A `Method`.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an object that is none of these.
    """
    if isinstance(identifier, Method):
        return identifier
    if isinstance(identifier, dict):
        return keras.saving.deserialize_keras_object(identifier)
    if not isinstance(identifier, str):
        raise TypeError(f"`method` must be a Method or a name. Received {identifier!r}.")
    if identifier.lower() not in _METHODS:
        raise ValueError(f"Unknown method {identifier!r}. Known: {names()}.")
    return _METHODS[identifier.lower()](**arguments)
