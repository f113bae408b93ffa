# SPDX-License-Identifier: Apache-2.0
"""Objects described by their constructor's arguments, and registered with Keras."""

from __future__ import annotations

import inspect
from typing import Any

import keras


class Configurable:
    """An object that is described by its constructor's arguments.

    Every argument of the constructor is kept in an attribute of the same name. Subclasses are
    registered with Keras serialization by being defined.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable(package="tfmot_atmc")(cls)

    def _arguments(self) -> dict[str, Any]:
        if type(self).__init__ is object.__init__:
            return {}
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

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
        """Returns the object that `get_config` described."""
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
