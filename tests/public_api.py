# SPDX-License-Identifier: Apache-2.0
"""The public names with their signatures, as text.

`make api` renews tests/golden/public_api.txt, and a change of that file is a change of the API.
"""

import enum
import inspect
import pathlib
import types

import tfmot_atmc

GOLDEN = pathlib.Path(__file__).parent / "golden" / "public_api.txt"


def lines(module=tfmot_atmc, path="atmc"):
    """One line for each name in the `dir` of a module and of the modules in it."""
    for name in sorted(dir(module)):
        value = getattr(module, name)
        here = f"{path}.{name}"
        if isinstance(value, types.ModuleType):  # of ours: a stranger's has no place here
            assert value.__name__.startswith(tfmot_atmc.__name__), f"{here} is {value.__name__}"
            yield f"{here}: module"
            yield from lines(value, here)
        elif isinstance(value, type):
            yield f"class {here}{_signature(value)}"
            if not issubclass(value, (enum.Enum, BaseException)):
                yield from _methods(value, here)
        elif callable(value):
            yield f"def {here}{_signature(value)}"
        elif name.startswith("__"):
            yield f"{here}: {type(value).__name__}"
        else:
            yield f"{here} = {value!r}"


def _methods(cls, path):
    """The public methods and properties that a class itself defines."""
    for name in sorted(name for name in vars(cls) if not name.startswith("_")):
        value = inspect.getattr_static(cls, name)
        if isinstance(value, property):
            yield f"  {path}.{name}: property"
        elif callable(getattr(cls, name, None)):
            yield f"  def {path}.{name}{_signature(getattr(cls, name))}"


def _signature(value):
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in found.parameters.values()
    ]
    shown = found.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return str(shown)


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("\n".join(lines()) + "\n")
