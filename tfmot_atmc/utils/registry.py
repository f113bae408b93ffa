# SPDX-License-Identifier: Apache-2.0
"""Classes of one kind by name: methods, attacks, constraints, kernels, schedules, objectives."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Registry", "check_arguments", "nearest", "parameters"]


class Registry:
    """The classes of one kind, by a name in lower case.

    Args:
        kind: what the classes are, in the singular, such as `"method"`; for messages.

    Example:

    >>> shapes = Registry("shape")
    >>> shapes.add(type("Square", (), {}))
    'square'
    >>> shapes.names()
    ['square']
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._classes: dict[str, type] = {}
        self._presets: dict[str, tuple[str, dict[str, Any]]] = {}

    def add(self, cls: type, name: str | None = None) -> str:
        """Registers a class and returns its name.

        A class that is defined again, in a notebook or by a reload, takes the place of its own
        earlier self: it has the same module and qualified name. Classes within functions come and
        go, so any other takes the name from them.

        Args:
            cls: the class.
            name: its name; None for that of the class.

        Raises:
            ValueError: if another class has the name.
        """
        key = (name or cls.__name__).lower()
        known = self._classes.get(key)
        if known is not None and _identity(known) != _identity(cls) and not _is_local(known):
            raise ValueError(
                f"The {self.kind} name {key!r} is taken: {_place(cls)} cannot replace "
                f"{_place(known)}. Give the new class another name."
            )
        self._classes[key] = cls
        return key

    def add_preset(self, name: str, of: str, **arguments: Any) -> None:
        """Registers a name for a class with some arguments.

        Args:
            name: the new name.
            of: name of the class.
            **arguments: arguments that its constructor then gets.
        """
        self._presets[name] = (of, arguments)

    def preset(self, name: str) -> dict[str, Any]:
        """Returns the arguments that stand behind a name; none for the name of a class."""
        return dict(self._presets[name.lower()][1]) if name.lower() in self._presets else {}

    def names(self) -> list[str]:
        """Returns all names, sorted."""
        return sorted([*self._classes, *self._presets])

    def name_of(self, cls: type) -> str:
        """Returns the name under which a class is registered.

        Raises:
            ValueError: if it is not.
        """
        for name, known in self._classes.items():
            if known is cls or _identity(known) == _identity(cls):
                return name
        raise ValueError(f"{_place(cls)} is no registered {self.kind}.")

    def __contains__(self, name: Any) -> bool:
        return isinstance(name, str) and name.lower() in (*self._classes, *self._presets)

    def find(self, name: str) -> type:
        """Returns the class of a name, in any case.

        Raises:
            ValueError: for an unknown name, with the nearest known one.
        """
        if name not in self:
            raise ValueError(
                f"Unknown {self.kind} {name!r}. Known: {', '.join(self.names())}."
                f"{nearest(str(name).lower(), self.names())} One of your own is known as soon as "
                "the file that defines it is imported."
            )
        key = name.lower()
        return self._classes[self._presets[key][0] if key in self._presets else key]


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the known name nearest to one, or nothing.

    Example:

    >>> nearest("atack", ["attack", "seed"])
    " Did you mean 'attack'?"
    """
    found = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean {found[0]!r}?" if found else ""


def parameters(cls: type) -> dict[str, Any]:
    """Returns a constructor's arguments and defaults, also those handed on to base classes.

    Args:
        cls: a class; `**kwargs` of its constructor stand for the arguments of the next class's.

    Example:

    >>> class A:
    ...     def __init__(self, a, b=1): ...
    >>> class B(A):
    ...     def __init__(self, c=2, **kwargs): ...
    >>> list(parameters(B)), parameters(B)["c"]
    (['c', 'a', 'b'], 2)
    """
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        constructor = vars(base).get("__init__")
        if constructor is None or base is object:
            continue
        listed = list(inspect.signature(constructor).parameters.values())[1:]
        more = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
        for parameter in listed:
            if parameter.kind not in more:
                found.setdefault(parameter.name, parameter.default)
        if not any(p.kind == inspect.Parameter.VAR_KEYWORD for p in listed):
            break
    without = getattr(cls, "_without", ())
    return {name: default for name, default in found.items() if name not in without}


def check_arguments(
    where: str, arguments: Mapping[str, Any], known: Iterable[str], also: Iterable[str] = ()
) -> None:
    """Refuses arguments that are not known, with the nearest name that is.

    Args:
        where: what was called, for the message.
        arguments: those given.
        known: names that are taken.
        also: names that were perhaps meant, such as those of a function around.

    Raises:
        TypeError: if one is not known.

    Example:

    >>> check_arguments("PGD", {"step": 3}, ["epsilon", "steps"])
    Traceback (most recent call last):
    ...
    TypeError: PGD has no argument `step`. Did you mean 'steps'? Known: epsilon, steps.
    """
    allowed = list(known)
    for name in arguments:
        if name not in allowed:
            raise TypeError(
                f"{where} has no argument `{name}`.{nearest(name, [*allowed, *also])} "
                f"Known: {', '.join(allowed) or 'none'}."
            )


def _identity(cls: type) -> tuple[str, str]:
    return cls.__module__, cls.__qualname__


def _is_local(cls: type) -> bool:
    return "<locals>" in cls.__qualname__


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
