# SPDX-License-Identifier: Apache-2.0
"""Flags from the fields of a dataclass, read in its source: to import it would load TensorFlow."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import resources
from typing import Any, NamedTuple

from absl import flags

from tfmot_atmc.cli.numbers import define_number

__all__ = ["Field", "define_fields", "fields"]

_PACKAGE = __name__.split(".")[0]
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n     +.*)*)", re.MULTILINE)


class Field(NamedTuple):
    """One field of a dataclass.

    Attributes:
        name: its name.
        kinds: the types that it takes, as words: `("int", "str")`; without None.
        choices: the values of a `Literal`; empty for another type.
        default: its default.
        about: its entry under `Attributes:` in the docstring, in one line.
    """

    name: str
    kinds: tuple[str, ...]
    choices: tuple[str, ...]
    default: object
    about: str


def fields(module: str, name: str) -> list[Field]:
    """Returns the fields of a dataclass without importing its module.

    Args:
        module: path of the module within the package, such as `"recipes/settings.py"`.
        name: the class's name. Its defaults must be literals.

    Raises:
        LookupError: the module has no such class, or a field is not described.

    Example:

    >>> settings = fields("recipes/settings.py", "CompressionSettings")
    >>> [(field.kinds, field.default) for field in settings if field.name in ("epochs", "seed")]
    [(('int',), None), (('int',), 0)]
    """
    tree = ast.parse(resources.files(_PACKAGE).joinpath(module).read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            told = dict(_ENTRY.findall(inspect.cleandoc(ast.get_docstring(node) or "")))
            declared = [entry for entry in node.body if isinstance(entry, ast.AnnAssign)]
            return [_field(entry, told) for entry in declared]
    raise LookupError(f"There is no class {name} in {module}.")


def define_fields(module: str, name: str, values: flags.FlagValues) -> None:
    """Defines a flag for each field: its name, its type, its default, and its text as help.

    Args:
        module: as in `fields`.
        name: as in `fields`.
        values: where to define them.
    """
    for field in fields(module, name):
        given: Any = (field.name, field.default)
        if field.choices:
            flags.DEFINE_enum(*given, list(field.choices), field.about, flag_values=values)
        elif field.kinds == ("float",):
            define_number(field.name, field.about, values, field.default)
        elif field.kinds == ("int",):
            flags.DEFINE_integer(*given, field.about, lower_bound=0, flag_values=values)
        elif field.kinds == ("bool",):
            flags.DEFINE_bool(*given, field.about, flag_values=values)
        else:
            flags.DEFINE_string(*given, field.about, flag_values=values)


def _field(entry: ast.AnnAssign, told: dict[str, str]) -> Field:
    name = ast.unparse(entry.target)
    if name not in told:
        raise LookupError(f"The field {name} has no entry under `Attributes:`.")
    about = " ".join(told[name].replace("`", "").split())
    choices: tuple[str, ...] = ()
    kinds = tuple(kind for kind in ast.unparse(entry.annotation).split(" | ") if kind != "None")
    if isinstance(entry.annotation, ast.Subscript):
        choices = tuple(ast.literal_eval(entry.annotation.slice))
    default = None if entry.value is None else ast.literal_eval(entry.value)
    return Field(name, kinds, choices, default, about[:1].upper() + about[1:])
