# SPDX-License-Identifier: Apache-2.0
"""What attacks add to a train or test step: bounds, warm-up, metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmot_atmc import tasks
from tfmot_atmc.attacks import Attack
from tfmot_atmc.slimming import is_graph
from tfmot_atmc.utils import distribution
from tfmot_atmc.utils.cloning import copy_layer, copy_state
from tfmot_atmc.utils.comparison import check_outputs, probe
from tfmot_atmc.utils.keras_internals import loss_metrics, loss_weights

_MARKER = "[tfmot_atmc bounds]"


def task(model: Any, y: Any, outputs: Any) -> tasks.Task:
    """Returns what a compressed model is to do, by its compiled loss.

    Args:
        model: the `CompressedModel`, compiled.
        y: labels.
        outputs: its outputs, or what has their shapes.

    Raises:
        ValueError: as of `tasks.task_of`.
    """
    weights = loss_weights(model)
    names = getattr(model.model, "output_names", ())
    return tasks.task_of(model.loss, outputs, y, names=names, weights=weights)


def adversarial(model: Any, attack: Attack, x: Any, y: Any, seed: tf.Tensor) -> Any:
    """Returns what an attack on the compiled loss of a compressed model makes of its inputs.

    Args:
        model: the `CompressedModel`, compiled; attacked in inference mode.
        attack: the attack.
        x: its inputs.
        y: the labels.
        seed: integer tensor `[2]`.

    Raises:
        ValueError: the loss cannot be attacked, and why.
    """

    def predict(inputs: Any) -> Any:
        return model.model(inputs, training=False)

    outputs = getattr(model.model, "outputs", None) or predict(attack.inputs(x))
    if isinstance(outputs, list) and len(outputs) == 1:
        outputs = outputs[0]
    attack, target, labels = task(model, y, outputs).under(attack, predict, y)
    return attack.inputs(attack(target, x, labels, seed=seed))


def reported_metrics(results: dict[str, Any], robust: set[str]) -> dict[str, Any]:
    """Returns the results without the robust metrics in which nothing has been counted.

    They come in the form that Keras averages over workers.

    Args:
        results: metrics by name.
        robust: names of the robust metrics that were updated.
    """
    unused = {"robust_loss", "robust_accuracy"} - robust
    return distribution.reported({k: value for k, value in results.items() if k not in unused})


@contextlib.contextmanager
def uncounted(model: Any) -> Iterator[None]:
    """Keeps a loss out of the metrics that Keras holds of each output's loss.

    Args:
        model: the `CompressedModel`, compiled.
    """
    variables = [variable for metric in loss_metrics(model) for variable in metric.variables]
    values = [tf.identity(variable.value) for variable in variables]
    yield
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def choose_monitor_modes(callbacks: Sequence[Any]) -> None:
    """Tells callbacks that monitor a robust metric which way is better, where they leave it open.

    Keras finds that out by itself for compiled metrics only.
    """
    better = {"robust_accuracy": "max", "robust_loss": "min"}
    for callback in callbacks:
        name = str(getattr(callback, "monitor", "")).removeprefix("val_")
        if name in better and getattr(callback, "mode", None) == "auto":
            callback.mode = better[name]


def part_of_the_way(x: Any, x_adversarial: Any, share: tf.Tensor) -> Any:
    """Returns the inputs with a share, in [0, 1], of their perturbations."""

    def mix(clean: tf.Tensor, attacked: tf.Tensor) -> tf.Tensor:
        if not attacked.dtype.is_floating:
            return attacked
        return clean + tf.cast(share, attacked.dtype) * (attacked - clean)

    return tf.nest.map_structure(mix, x, x_adversarial)


_BYTES = ("uint8", "int8")


def unpacked(model: Any, data: Any) -> tuple[Any, Any, Any]:
    """Returns inputs, targets and weights of a batch; bytes as floats where they are attacked.

    Args:
        model: a `CompressedModel`.
        data: what a step is given.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if model.attack is not None or model.validation_attack is not None:
        x = tf.nest.map_structure(_as_floats, x)
    return x, y, sample_weight


def _as_floats(leaf: Any) -> Any:
    name = keras.backend.standardize_dtype(leaf.dtype) if hasattr(leaf, "dtype") else ""
    return tf.cast(leaf, tf.float32) if name in _BYTES else leaf


def with_float_inputs(model: keras.Model) -> keras.Model:
    """Returns a copy that takes floats where the model takes bytes; the model where it takes none.

    An attack moves an image by less than one level and needs a slope, so it cannot go through a
    conversion to bytes. Layers, names and outputs stay the same.

    Args:
        model: a built Keras model.

    Raises:
        ValueError: if the graph of a model that takes bytes is not known, or the copy's outputs
            differ.
    """
    inputs = keras.tree.flatten(getattr(model, "inputs", None) or [])
    if not any(tensor.dtype in _BYTES for tensor in inputs):
        return model
    if not is_graph(model):
        raise ValueError(
            f"Model '{model.name}' takes bytes, and only functional and sequential ones can be "
            "given floats for an attack. Give it a float32 input and divide within the model."
        )
    tensors = [
        keras.Input(
            batch_shape=tensor.shape,
            dtype="float32" if tensor.dtype in _BYTES else tensor.dtype,
            name=tensor.name,
        )
        for tensor in inputs
    ]

    def again(layer: Any) -> Any:
        kept = not isinstance(layer, keras.layers.Layer)  # an operation keeps nothing
        return layer if kept else copy_layer(layer, layer.get_config())

    # A sequential model that was never called has inputs, but no `input`.
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    copy = keras.models.clone_model(
        model,
        input_tensors=keras.tree.pack_sequence_as(structure, tensors),
        clone_function=again,
    )
    copy_state(model, copy)
    check_outputs(
        probe(model),
        copy,
        f"Model '{model.name}' with floats for its inputs",
        "What it does to bytes it does not do to floats: give it a float32 input, and divide "
        "within the model.",
        tolerance=1e-4,
    )
    return copy


def within_bounds(attack: Attack, x: Any) -> Any:
    """Returns the inputs, which a graph reads only after it has checked them.

    Floating inputs must lie within the attack's bounds. An assertion runs beside the other ops of
    a graph; what must not get ahead of it has to depend on the inputs returned. XLA leaves checks
    out; there this does nothing.
    """
    low, high = attack.bounds

    def checked(leaf: tf.Tensor) -> tf.Tensor:
        if not leaf.dtype.is_floating:
            return leaf
        value = tf.cast(leaf, tf.float32)
        slack = 1e-5
        inside = tf.reduce_all(tf.math.is_finite(value))
        if low is not None:
            inside &= tf.reduce_all(value >= tf.cast(low, tf.float32) - slack)
        if high is not None:
            inside &= tf.reduce_all(value <= tf.cast(high, tf.float32) + slack)
        message = (
            f"{_MARKER} Inputs must be finite and within the bounds of the attack, "
            f"{attack.get_config()['bounds']}. "
            "Scale the inputs, or give the attack the bounds and epsilon of your input units."
        )
        found = [message, "Range found:", tf.reduce_min(value), tf.reduce_max(value)]
        check = tf.debugging.Assert(inside, found)
        with tf.control_dependencies([] if check is None else [check]):
            return tf.identity(leaf)

    return tf.nest.map_structure(checked, x)


def bounds_message(error: Exception) -> str | None:
    """Returns the message of a failed bounds check, or None for any other error."""
    text = str(error)
    if _MARKER not in text:
        return None
    line = text[text.index(_MARKER) + len(_MARKER) :].splitlines()[0]
    return " ".join(line.replace("'", "").replace("]", " ").split())
