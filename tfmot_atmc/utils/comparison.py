# SPDX-License-Identifier: Apache-2.0
"""Whether two models are one function: their outputs on made-up inputs, compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.utils.keras_internals import flat_layers, input_structure, own_state, random_states

__all__ = ["Probe", "check_outputs", "largest_difference", "probe", "undisturbed"]

_BATCH = 2
# What an open axis is taken to be; a larger image where a network needs it.
_OPEN_SIZES = (8, 32, 96)


class Probe(NamedTuple):
    """Inputs, and what a model made of them.

    Attributes:
        inputs: nest of tensors.
        outputs: arrays, flattened.
        again: what the same model makes of them now; a model that is random differs.
    """

    inputs: Any
    outputs: list[np.ndarray]
    again: Callable[[], list[np.ndarray]]


def probe(model: keras.Model, call: Callable[[Any], Any] | None = None) -> Probe | None:
    """Runs a model in inference mode on inputs made up from what it says it takes.

    Floating inputs are uniform in [0, 1), integers 0 or 1. The model's own state is left as it was.

    Args:
        model: a built model.
        call: what to run instead, as a function of the inputs.

    Returns:
        A `Probe`; None where the inputs are not known, or the model does not run on them.
    """
    structure = input_structure(model)
    if structure is None:
        return None
    run = call or (lambda inputs: model(inputs, training=False))

    def outputs_of(inputs: Any) -> list[np.ndarray]:
        with undisturbed(model):
            return _arrays(run(inputs))

    for size in _OPEN_SIZES:
        rng = np.random.default_rng(0)
        try:
            inputs = keras.tree.map_structure(lambda t: _made_up(t, size, rng), structure)  # noqa: B023
            outputs = outputs_of(inputs)
        except Exception:
            # A caller with examples of its own goes on from there; without any there is no claim.
            continue
        return Probe(inputs, outputs, lambda: outputs_of(inputs))  # noqa: B023
    return None


def check_outputs(
    expected: Probe | None,
    model: keras.Model,
    what: str,
    advice: str,
    *,
    tolerance: float,
    call: Callable[[Any], Any] | None = None,
) -> None:
    """Raises an error if a model does not give the outputs of a probe.

    Args:
        expected: what `probe` returned; with None nothing is compared.
        model: the model to run; its state is left as it was.
        what: its name in the message.
        advice: what to do about a difference.
        tolerance: largest difference to accept, relative to the largest output.
        call: what to run instead of the model, as a function of the inputs.

    Raises:
        ValueError: if the outputs differ.
    """
    if expected is None:
        return
    run = call or (lambda inputs: model(inputs, training=False))
    try:
        with undisturbed(model):
            outputs = _arrays(run(expected.inputs))
    except Exception as error:
        raise ValueError(f"{what} does not run on inputs on which it should. {advice}") from error
    difference = largest_difference(expected.outputs, outputs)
    if difference <= tolerance:
        return
    if largest_difference(expected.outputs, expected.again()) > tolerance:
        return  # the original is random: there is nothing to compare
    raise ValueError(
        f"{what} gives other outputs than the original: they differ by {difference:.3g} of the "
        f"largest output on random inputs. {advice}"
    )


def largest_difference(expected: list[np.ndarray], outputs: list[np.ndarray]) -> float:
    """Returns the largest difference, relative to the largest finite entry of each output."""
    if [a.shape for a in expected] != [b.shape for b in outputs]:
        return np.inf
    worst = 0.0
    for one, other in zip(expected, outputs, strict=True):
        if one.dtype.kind not in "fiub" or other.dtype.kind not in "fiub":
            worst = max(worst, 0.0 if np.array_equal(one, other) else np.inf)
            continue
        first, second = one.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(first)
        if not np.array_equal(first[~finite], second[~finite], equal_nan=True):
            return np.inf
        scale = np.abs(first[finite]).max(initial=0.0)
        moved = np.abs(first[finite] - second[finite]).max(initial=0.0)
        worst = max(worst, float(moved / scale) if scale else float(moved))
        if np.isnan(worst):
            return np.inf
    return worst


@contextlib.contextmanager
def undisturbed(model: keras.layers.Layer) -> Iterator[None]:
    """Brings back what calls inside the context change: states of layers, random counters."""
    layers = flat_layers(model)
    variables = [v for layer in layers for v in own_state(layer)]
    variables += [state for layer in layers for state in random_states(layer)]
    values = [keras.ops.convert_to_numpy(variable) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _made_up(tensor: Any, size: int, rng: np.random.Generator) -> Any:
    shape = [s or size for s in tensor.shape[1:]]
    shape = ([tensor.shape[0] or _BATCH] if len(tensor.shape) else []) + shape
    dtype = str(tensor.dtype)
    if dtype == "string":
        return tf.constant(rng.choice(["a", "b"], shape))
    if "float" in dtype:
        return tf.cast(rng.random(shape), dtype)
    return tf.cast(rng.integers(0, 2, shape), dtype)


def _arrays(outputs: Any) -> list[np.ndarray]:
    return [_array(output) for output in keras.tree.flatten(outputs)]


def _array(output: Any) -> np.ndarray:
    if tf.is_tensor(output) and output.dtype == tf.bfloat16:
        output = tf.cast(output, tf.float32)
    return np.asarray(output)
