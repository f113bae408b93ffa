# SPDX-License-Identifier: Apache-2.0
"""Python files of the user's own, whose classes are known as soon as they are imported."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["import_file"]


def import_file(path: str | os.PathLike[str]) -> ModuleType:
    """Imports a Python file under its own name; once, however often it is asked for.

    Args:
        path: the file, such as `my_method.py`; it becomes the module `my_method`.

    Returns:
        The module.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no Python file, or another module has its name.
    """
    file = Path(path).resolve()
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise ValueError(f"Expected a Python file such as my_method.py. Received {str(path)!r}.")
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    known = sys.modules.get(file.stem)
    if known is not None:
        where = getattr(known, "__file__", None)
        if where is not None and Path(where).resolve() == file:
            return known
        raise ValueError(
            f"The module name {file.stem!r} of {str(path)!r} is taken by "
            f"{where or 'Python itself'}. Rename the file."
        )
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{str(path)!r} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
    return module
