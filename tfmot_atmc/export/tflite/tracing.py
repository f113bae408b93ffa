# SPDX-License-Identifier: Apache-2.0
"""From a Keras model to a frozen graph, or to the reason why a file cannot hold the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tfmot_atmc.utils.cloning import copy_model

__all__ = ["ExportError", "computing_in_float32", "frozen_graph", "last_lines"]

_ERROR_LINES = 8
_ASSIGN = "Assign"


class ExportError(RuntimeError):
    """An export did not produce a file that runs, matches the Keras model and is smaller."""


def last_lines(error: BaseException) -> str:
    """Returns what an error says, in a few lines."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines[:_ERROR_LINES])


def computing_in_float32(model: keras.Model) -> keras.Model:
    """Returns the model, or a copy in float32 of one whose variables are of another float type.

    Args:
        model: a built Keras model.

    Raises:
        ExportError: if such a model cannot be copied.
    """
    types = {str(variable.dtype) for variable in model.variables}
    if not any("float" in dtype and dtype != "float32" for dtype in types):
        return model
    try:
        return copy_model(model, dtype="float32")
    except ValueError as error:
        raise ExportError(
            f"A file computes in float32. The model {model.name!r} has variables of "
            f"{', '.join(sorted(types))} and cannot be brought to float32: {error}"
        ) from error


def frozen_graph(name: str, forward: Callable[..., Any], signature: Sequence[tf.TensorSpec]) -> Any:
    """Traces a model and turns its variables into constants.

    Args:
        name: the model's name, for messages.
        forward: the model, from flat inputs to flat outputs.
        signature: the inputs.

    Returns:
        A concrete function without variables.

    Raises:
        ExportError: if the model does not run on such inputs, or its call changes its own state.
    """
    function = tf.function(forward, input_signature=list(signature), autograph=False)
    try:
        traced = function.get_concrete_function()
    except Exception as error:
        raise ExportError(
            f"The model {name!r} does not run on inputs of {[tuple(s.shape) for s in signature]}: "
            f"{last_lines(error)}"
        ) from error
    changed = _changed_variables(traced)
    if changed:
        raise ExportError(
            f"A call of the model {name!r} changes its own state ({', '.join(changed)}), which a "
            "file cannot keep from one call to the next. Build recurrent layers with "
            "stateful=False, or make the state an input and an output of the model; leave out "
            "layers that draw random numbers in inference."
        )
    try:
        return convert_variables_to_constants_v2(traced, lower_control_flow=False)
    except Exception as error:
        raise ExportError(
            f"The weights of the model {name!r} cannot be made constants (lookup tables and other "
            "resources cannot; put such layers in front of the model that is exported): "
            f"{last_lines(error)}"
        ) from error


def _changed_variables(traced: Any) -> list[str]:
    """Names of the variables that a graph assigns, in loops and branches too."""
    definition = traced.graph.as_graph_def()
    nodes = list(definition.node)
    for function in definition.library.function:
        nodes += function.node_def
    if not any(node.op.startswith(_ASSIGN) and "Variable" in node.op for node in nodes):
        return []
    held = {id(handle): variable.name for variable, handle in _handles(traced)}
    names = {
        held.get(id(captured), "a variable")
        for operation in traced.graph.get_operations()
        if operation.type.startswith(_ASSIGN)
        for captured in _captured(traced, operation.inputs[0])
    }
    return sorted(names) or ["a variable"]


def _handles(traced: Any) -> list[tuple[Any, Any]]:
    return [(variable, variable.handle) for variable in traced.graph.variables]


def _captured(traced: Any, placeholder: Any) -> list[Any]:
    """The outer tensor that a placeholder of a graph stands for."""
    return [outer for outer, inner in traced.graph.captures if inner is placeholder]
