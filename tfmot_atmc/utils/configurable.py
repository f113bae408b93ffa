# SPDX-License-Identifier: Apache-2.0
"""Objects described by their constructor's arguments, and registered with Keras."""

from __future__ import annotations

from typing import Any, ClassVar

import keras

from tfmot_atmc.utils.registry import Registry, check_arguments, parameters

__all__ = ["Configurable", "get_configured"]

_SERIALIZED = Registry("class")
"""All described classes: their names stand in saved models, so none may be there twice."""


class Configurable:
    """An object that is described by its constructor's arguments.

    Every argument of the constructor is kept in an attribute of the same name; `**kwargs` stand
    for those of the base class. A subclass is registered by being defined: with Keras, for saving,
    and under its name among its kind.

    Class arguments:
        kind: what the subclasses are, such as `"method"`; makes the class the base of a kind.
        name: the name among its kind; that of the class in lower case if not given.
        abstract: whether the class is only a base for others, without a name of its own.
    """

    registry: ClassVar[Registry]
    """The registered classes of this kind."""

    def __init_subclass__(
        cls, kind: str | None = None, name: str | None = None, abstract: bool = False, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if kind is not None:
            cls.registry = Registry(kind)
            return
        if abstract:
            return
        if hasattr(cls, "registry"):
            cls.registry.add(cls, name)
        _SERIALIZED.add(cls)
        keras.saving.register_keras_serializable(package="tfmot_atmc")(cls)

    @classmethod
    def takes(cls, argument: str) -> bool:
        """Returns whether the constructor has an argument of that name.

        Args:
            argument: the name.
        """
        return argument in parameters(cls)

    @classmethod
    def default(cls, argument: str) -> Any:
        """Returns the default of an argument of the constructor."""
        return parameters(cls)[argument]

    def but(self, **changes: Any) -> Any:
        """Returns the same object with some arguments changed.

        Args:
            **changes: arguments of the constructor.

        Raises:
            TypeError: for an argument that it does not have.
        """
        check_arguments(type(self).__name__, changes, parameters(type(self)))
        return type(self)(**{**self._arguments(), **changes})

    def _arguments(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in parameters(type(self))}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, nested objects serialised."""
        return {
            name: value
            if value is None or isinstance(value, (bool, int, float, str))
            else keras.saving.serialize_keras_object(value)
            for name, value in self._arguments().items()
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Returns the object that `get_config` described.

        Raises:
            TypeError: for an argument that the constructor does not have.
        """
        check_arguments(cls.__name__, config, parameters(cls))
        return cls(
            **{
                name: keras.saving.deserialize_keras_object(value)
                if isinstance(value, dict)
                else value
                for name, value in config.items()
            }
        )

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments().items())
        return f"{type(self).__name__}({arguments})"


def get_configured(base: type[Configurable], identifier: Any, arguments: dict[str, Any]) -> Any:
    """Returns an object of a kind from itself, its name or its serialised form.

    Args:
        base: the base class of the kind.
        identifier: an object of the kind, a name, or a dict of Keras serialization.
        arguments: arguments of the constructor, with a name only.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an object that is none of these, and for arguments that are unknown or stand
            beside an object.
    """
    kind = base.registry.kind
    if isinstance(identifier, str):
        cls = base.registry.find(identifier)
        check_arguments(cls.__name__, arguments, parameters(cls))
        return cls(**{**base.registry.preset(identifier), **arguments})
    if arguments:
        raise TypeError(
            f"Arguments {sorted(arguments)} stand beside a {kind} that is made already, "
            f"{identifier!r}. Give them to its constructor."
        )
    if isinstance(identifier, dict):
        found = keras.saving.deserialize_keras_object(identifier)
    else:
        found = identifier
    if not isinstance(found, base):
        raise TypeError(f"Expected a {kind} or its name. Received {found!r}.")
    return found
