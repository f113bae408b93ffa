# SPDX-License-Identifier: Apache-2.0
"""A backward pass that goes on where activations are off, for attacks on networks that are sparse.

A ReLU that is off passes no gradient. In a network of few weights that cuts most inputs off: their
gradient is exactly zero, and a step by its sign moves only the others. The remedy leaves the
forward pass as it is, and gives what is off a small slope in the backward pass. It is a case of the
backward pass differentiable approximation of Athalye, Carlini and Wagner, "Obfuscated gradients
give a false sense of security", ICML 2018.

It works on TensorFlow's operations, so on any model's: every ReLU whichever layer or function makes
it, ReLU6, leaky ReLU, a maximum or minimum with a constant (clipping), and max-pooling, whose
gradient then reaches the entries that are not the largest as well. What lies within a function
that was traced before, such as that of a SavedModel, is out of reach.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfmot_atmc.utils.tracing import within_xla

__all__ = [
    "DEAD_SHARE",
    "SLOPE",
    "automatic",
    "check_slope",
    "gradients",
    "is_marked",
    "marking",
    "zero_share",
]

SLOPE = 0.05
"""The slope that `"auto"` takes: 0.05 and 0.2 were the strongest seen (docs/frontier.md)."""

DEAD_SHARE = 0.6
"""`"auto"` takes the slope where more than this share of the input gradient is exactly zero."""

_PREFIX = "TfmotAtmcSurrogate"
_slope: contextvars.ContextVar[Any] = contextvars.ContextVar("slope")


def check_slope(slope: Any) -> Any:
    """Returns an attack's `backward_slope`: None, `"auto"` or a float.

    Raises:
        ValueError: if it is something else, or a number outside (0, 1].
    """
    if slope is None or slope == "auto":
        return slope
    if isinstance(slope, bool) or not isinstance(slope, (int, float)) or not 0 < slope <= 1:
        raise ValueError(
            f"`backward_slope` must be None, 'auto' or a number in (0, 1]. Received {slope!r}."
        )
    return float(slope)


def marking(function: Callable[[Any], tf.Tensor]) -> Callable[[Any], tf.Tensor]:
    """Returns the same function; what it builds is ready for `gradients`.

    Args:
        function: callable from inputs to a tensor, called within a graph.
    """

    def marked(inputs: Any) -> tf.Tensor:
        graph = tf.compat.v1.get_default_graph()
        with graph.gradient_override_map({kind: _PREFIX + kind for kind in _KINDS}):
            return function(inputs)

    return marked


def is_marked(operations: Sequence[tf.Operation]) -> bool:
    """Tells whether any of some operations has a surrogate.

    Args:
        operations: operations of a graph.
    """
    return any(
        operation.type in _KINDS and operation.node_def.attr["_gradient_op_type"].s
        for operation in operations
    )


def gradients(value: tf.Tensor, leaves: Sequence[tf.Tensor], slope: Any) -> list[Any]:
    """Returns gradients with respect to `leaves`, with a slope for what is off.

    Args:
        value: tensor of losses, built from `leaves` in this graph.
        leaves: tensors.
        slope: number or scalar tensor; 0 gives the plain gradients.

    Raises:
        RuntimeError: called outside a graph.
    """
    if tf.executing_eagerly():
        raise RuntimeError("A slope for the backward pass needs a graph: wrap it in `tf.function`.")
    with _taking(slope):
        return tf.gradients(value, list(leaves))


def automatic(problem: Any) -> tf.Tensor | None:
    """Returns the slope that `"auto"` takes, 0 where gradients are alive: a float32 scalar.

    Args:
        problem: a `Problem`, in a graph; its clean inputs are looked at.

    Returns:
        None where the model has nothing that a slope would change.
    """
    graph = tf.compat.v1.get_default_graph()
    built = len(graph.get_operations())
    found = problem.with_slope(0.0).gradient(problem.x)[2]
    if not is_marked(graph.get_operations()[built:]):
        return None
    return tf.where(zero_share(found) > DEAD_SHARE, SLOPE, 0.0)


def zero_share(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns which share of the entries is exactly zero, a float32 scalar.

    Args:
        gradients: tensors.

    Example:
    >>> float(zero_share([tf.constant([[0.0, 1.0, 0.0, 2.0]])]))
    0.5
    """
    zeros = tf.add_n([tf.reduce_sum(tf.cast(tf.equal(g, 0), tf.float32)) for g in gradients])
    entries = tf.add_n([tf.size(g, tf.int64) for g in gradients])
    return zeros / tf.cast(entries, tf.float32)


@contextlib.contextmanager
def _taking(slope: Any) -> Iterator[None]:
    token = _slope.set(slope)
    try:
        yield
    finally:
        _slope.reset(token)


def _unless_plain(plain: tf.Tensor, sloped: Callable[[], tf.Tensor]) -> tf.Tensor:
    """Returns the plain gradient where the slope is zero, so that the other costs nothing there.

    The plain one stays outside of any branch: on a CPU that of max-pooling is slow within.
    """
    slope = _slope.get()
    if not tf.is_tensor(slope):
        return sloped() if slope else plain
    return sloped() if within_xla() else tf.cond(slope > 0, sloped, lambda: tf.identity(plain))


def _where_off(on: tf.Tensor, grad: tf.Tensor, least: float = 0.0) -> tf.Tensor:
    """Returns `grad` where `on`, and elsewhere the slope's share of it, at least `least`."""
    slope = tf.maximum(tf.cast(_slope.get(), grad.dtype), tf.cast(least, grad.dtype))
    return tf.where(on, grad, slope * grad)


def _relu(op: tf.Operation, grad: tf.Tensor) -> tf.Tensor:
    plain = tf.raw_ops.ReluGrad(gradients=grad, features=op.outputs[0])
    return _unless_plain(plain, lambda: _where_off(op.outputs[0] > 0, grad))


def _relu6(op: tf.Operation, grad: tf.Tensor) -> tf.Tensor:
    return _where_off((op.outputs[0] > 0) & (op.outputs[0] < 6), grad)


def _leaky_relu(op: tf.Operation, grad: tf.Tensor) -> tf.Tensor:
    return _where_off(op.inputs[0] > 0, grad, op.get_attr("alpha"))


def _maximum(op: tf.Operation, grad: tf.Tensor) -> list[Any]:
    return _larger(op, grad, op.inputs[0] >= op.inputs[1])


def _minimum(op: tf.Operation, grad: tf.Tensor) -> list[Any]:
    return _larger(op, grad, op.inputs[0] <= op.inputs[1])


def _larger(op: tf.Operation, grad: tf.Tensor, first: tf.Tensor) -> list[Any]:
    """Returns the gradients of a maximum or minimum; with a constant it is an activation."""
    found: list[Any] = []
    constant = [tensor.op.type == "Const" for tensor in op.inputs]
    for number, (tensor, chosen) in enumerate(zip(op.inputs, (first, ~first), strict=True)):
        if constant[1 - number]:
            passed = _where_off(chosen, grad)
        else:
            passed = tf.where(chosen, grad, tf.zeros_like(grad))
        found.append(None if constant[number] else _summed_to(passed, tensor))
    return found


def _summed_to(grad: tf.Tensor, tensor: tf.Tensor) -> tf.Tensor:
    """Returns the gradient of a tensor that was broadcast, from that of the broadcast one."""
    extra = grad.shape.rank - tensor.shape.rank
    if extra:
        grad = tf.reduce_sum(grad, axis=list(range(extra)))
    sizes = zip(tensor.shape, grad.shape, strict=True)
    ones = [axis for axis, (size, full) in enumerate(sizes) if size == 1 and full != 1]
    return tf.reduce_sum(grad, axis=ones, keepdims=True) if ones else grad


def _max_pool(op: tf.Operation, grad: tf.Tensor) -> tf.Tensor:
    """Gives every entry of a window, besides the largest, the slope's share of its gradient."""
    window = {name: op.get_attr(name) for name in ("ksize", "strides")}
    window |= {name: op.get_attr(name).decode() for name in ("padding", "data_format")}
    pooled = {"orig_input": op.inputs[0], "orig_output": op.outputs[0], "grad": grad}
    explicit = window["padding"] == "EXPLICIT"  # of which there is no mean
    if op.type == "MaxPool3D":
        largest = tf.raw_ops.MaxPool3DGrad(**pooled, **window)
    else:
        paddings = op.get_attr("explicit_paddings") if explicit else []
        largest = tf.raw_ops.MaxPoolGrad(**pooled, **window, explicit_paddings=paddings)
    if explicit:
        return largest
    average = tf.raw_ops.AvgPool3DGrad if op.type == "MaxPool3D" else tf.raw_ops.AvgPoolGrad

    def sloped() -> tf.Tensor:
        mean = average(orig_input_shape=tf.shape(op.inputs[0]), grad=grad, **window)
        every = mean * float(math.prod(window["ksize"]))
        return largest + tf.cast(_slope.get(), grad.dtype) * (every - largest)

    return _unless_plain(largest, sloped)


_KINDS: dict[str, Callable[..., Any]] = {
    "LeakyRelu": _leaky_relu,
    "MaxPool": _max_pool,
    "MaxPool3D": _max_pool,
    "Maximum": _maximum,
    "Minimum": _minimum,
    "Relu": _relu,
    "Relu6": _relu6,
}
for _kind, _function in _KINDS.items():
    tf.RegisterGradient(_PREFIX + _kind)(_function)
