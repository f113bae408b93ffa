# SPDX-License-Identifier: Apache-2.0
"""Traced functions, kept with the model that they were traced for."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["Traces"]


class Traces:
    """What was traced for a model, as long as the model lives.

    A trace refers to its model weakly, so that keeping it keeps no model alive.
    """

    def __init__(self) -> None:
        self._kept: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        """Returns the number of models that are known and alive."""
        return len(self._kept)

    def get(self, model: Any, key: Hashable, trace: Callable[[Callable[[], Any]], Any]) -> Any:
        """Returns what was traced for a model under a key, or traces it.

        Args:
            model: any callable, also a bound method.
            key: what else the trace depends on.
            trace: callable from a reference, which called returns the model, to what is kept.
        """
        owner = model.__self__ if isinstance(model, types.MethodType) else model
        reference: Callable[[], Any]
        try:
            kept = self._kept.setdefault(owner, {})
            reference = weakref.ref(model) if owner is model else weakref.WeakMethod(model)
        except TypeError:  # Neither hashable nor weakly referable: trace anew at each call.
            kept, reference = {}, (lambda: model)
        # Kernels replaced in place make a trace stale; their variables give it away.
        variables = tuple(id(variable) for variable in getattr(owner, "variables", ()))
        full = (getattr(model, "__func__", None), key, variables)
        if full not in kept:
            kept[full] = trace(reference)
        return kept[full]
