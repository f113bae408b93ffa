# SPDX-License-Identifier: Apache-2.0
"""What Keras has no public name for: all layers of a model, their own variables, their inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

__all__ = [
    "BuiltFromOwnBatch",
    "already_averaged",
    "build_shapes",
    "build_state",
    "calls_of",
    "computes_as_its_class",
    "flat_layers",
    "has_graph",
    "inner_layers",
    "input_structure",
    "lambda_output_shape",
    "layer_state",
    "loss_axis",
    "loss_metrics",
    "loss_tracker",
    "loss_weights",
    "nodes_by_depth",
    "overrides",
    "own_loss",
    "own_state",
    "own_trainable_variables",
    "own_variables",
    "place_randomness",
    "plain_kernel",
    "random_states",
    "set_own_variables",
    "slots_of",
    "unlocked",
]


# What a Keras optimizer calls to sum the gradients of the replicas.
_REDUCTION = "_all_reduce_sum_gradients"
_NO_SLOTS = (
    "_variables",
    "_trainable_variables",
    "_model_variables_moving_average",
    "_accumulated_gradients",
)


def flat_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the model itself and all layers inside it, each once, in a fixed order."""
    return list(model._flatten_layers(include_self=True, recursive=True))


def inner_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns all layers inside a model, without itself."""
    return flat_layers(model)[1:]


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables of the layer itself, without those of layers inside it."""
    return own_trainable_variables(layer) + own_state(layer)


def own_trainable_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the trainable variables of the layer itself."""
    return list(layer._trainable_variables)


def own_state(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables of the layer itself that a step may change and no optimizer trains."""
    return list(layer._non_trainable_variables)


def set_own_variables(
    layer: keras.layers.Layer, variables: list[keras.Variable]
) -> list[keras.Variable]:
    """Sets which trainable variables Keras sees in the layer itself; returns those before."""
    before = layer._trainable_variables
    layer.__dict__["_trainable_variables"] = variables
    return before


@contextlib.contextmanager
def unlocked(layer: keras.layers.Layer) -> Iterator[None]:
    """Lets a layer that is built take more variables inside the context."""
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def plain_kernel(layer: keras.layers.Layer) -> keras.Variable:
    """Returns the variable behind `kernel`, which LoRA and quantization may compute from others."""
    return layer._kernel


def lambda_output_shape(layer: keras.layers.Lambda) -> Any:
    """Returns the output shape that a `Lambda` was made with."""
    return layer._output_shape


def calls_of(layer: keras.layers.Layer) -> list[Any]:
    """Returns the nodes of a layer: one for each time that it was called on symbolic tensors."""
    return layer._inbound_nodes


def has_graph(model: Any) -> bool:
    """Tells whether a model knows the calls that it consists of."""
    return hasattr(model, "_nodes_by_depth")


def nodes_by_depth(model: keras.Model) -> dict[int, list[Any]]:
    """Returns the calls of a functional model; those of the greatest depth run first."""
    return model._nodes_by_depth


def loss_weights(model: keras.Model) -> Any:
    """Returns the `loss_weights` that a model was compiled with; None where there are none."""
    return getattr(model._compile_loss, "_user_loss_weights", None)


def loss_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Returns the metrics that Keras keeps of each output's loss; none of a single output's."""
    return list(getattr(model._compile_loss, "metrics", None) or [])


def build_state(model: keras.Model, inner: keras.Model, y: Any) -> None:
    """Builds the optimizer, the metrics and the losses of a compiled model before it is traced.

    Variables that are made while a function is traced have all of it traced a second time.

    Args:
        model: the compiled model.
        inner: the model whose outputs it returns; where their shapes are not known, or targets
            are nested in another way, metrics and losses are left to be built in the trace.
        y: nest of targets, or of what has their shapes and dtypes.
    """
    if model.optimizer is not None and not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    outputs = getattr(getattr(inner, "_functional", inner), "_outputs_struct", None)
    parts = [part for part in (model._compile_metrics, model._compile_loss) if part is not None]
    unbuilt = [part for part in parts if not part.built]
    if outputs is None or y is None or not unbuilt or not _nested_alike(y, outputs):
        return

    def described(leaf: Any) -> Any:
        return keras.KerasTensor(leaf.shape, keras.backend.standardize_dtype(leaf.dtype))

    y, outputs = keras.tree.map_structure(described, (y, outputs))
    for part in unbuilt:
        part.build(y, outputs)


def _nested_alike(one: Any, other: Any) -> bool:
    try:
        keras.tree.assert_same_structure(one, other)
    except (TypeError, ValueError):
        return False
    return True


def loss_axis(loss: keras.losses.Loss) -> int:
    """Returns the axis along which a loss finds its classes."""
    return getattr(loss, "axis", getattr(loss, "_fn_kwargs", {}).get("axis", -1))


def loss_tracker(model: keras.Model) -> keras.metrics.Metric:
    """Returns the metric `loss` of a compiled model."""
    return model._loss_tracker


class BuiltFromOwnBatch:
    """Builds what Keras would build while it traces a step, so that this is traced once.

    Where several replicas train it lets `fit` look at `self._own_batch(iterator)`: Keras itself
    cannot look at a batch that is spread over workers, or unevenly.
    """

    def _maybe_symbolic_build(self: Any, iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is not None and self.distribute_strategy.num_replicas_in_sync > 1:
            iterator, data_batch = None, self._own_batch(iterator)
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)  # type: ignore
        # The kinds of a dataset's elements are known without a look at one.
        spec = getattr(getattr(iterator, "_distributed_dataset", None), "element_spec", None)
        if isinstance(spec, tuple) and len(spec) > 1:
            build_state(self, self.model, spec[1])

    def train_on_batch(self: Any, x: Any, y: Any = None, **arguments: Any) -> Any:
        """Trains on one batch, see `keras.Model.train_on_batch`."""
        if self._distribute_strategy is None and self.compiled:
            given = keras.tree.map_structure(keras.ops.convert_to_tensor, y)
            build_state(self, self.model, given)
        return super().train_on_batch(x, y, **arguments)  # type: ignore


def random_states(layer: keras.layers.Layer) -> list[Any]:
    """Returns the states of the layer's own random generators, which are no weights."""
    return [generator.state for generator in layer._seed_generators]


def layer_state(model: keras.layers.Layer) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Returns what a forward pass may change, such as moving averages, with its value now."""
    return [
        (variable, tf.identity(variable.value))
        for layer in flat_layers(model)
        for variable in own_state(layer)
    ]


def place_randomness(model: keras.layers.Layer, step: tf.Tensor) -> None:
    """Ties the random draws of layers such as Dropout to the step, so that a resumed run repeats.

    Keras saves the counters of its random seeds neither in weights nor in backups.

    Args:
        model: the model whose layers draw.
        step: scalar integer tensor, optimizer steps taken so far.
    """
    for layer in flat_layers(model):
        for variable in random_states(layer):
            state = tf.convert_to_tensor(variable)
            counter = tf.cast(step, state.dtype) * 4096  # more than the draws of one step
            variable.assign(tf.stack([state[0], counter]))


def build_shapes(layer: keras.layers.Layer) -> dict[str, Any]:
    """Returns the shapes that a layer was built with, by argument; none if it does not tell."""
    return getattr(layer, "_build_shapes_dict", None) or {}


def input_structure(model: keras.Model) -> Any:
    """Returns the nest of `KerasTensor`s that a model takes; None where it is not known.

    A subclassed model knows the shapes that it was built with, but no dtypes: they are taken to be
    those of floating inputs.
    """
    if getattr(model, "_inputs_struct", None) is not None:
        return model._inputs_struct
    if getattr(model, "inputs", None):
        return model.inputs[0] if len(model.inputs) == 1 else model.inputs
    shapes = build_shapes(model)
    if len(shapes) != 1:
        return None
    return _specified(next(iter(shapes.values())))


def _specified(shape: Any) -> Any:
    if isinstance(shape, dict):
        return {key: _specified(value) for key, value in shape.items()}
    if all(size is None or isinstance(size, int) for size in shape):
        return keras.KerasTensor((None, *shape[1:]), dtype=keras.config.floatx())
    return [_specified(value) for value in shape]


def overrides(thing: Any, method: str) -> bool:
    """Tells whether a method is another than the one that Keras gives to its classes.

    Args:
        thing: a layer or model, or a class of them.
        method: name of the method.
    """
    if not isinstance(thing, type):
        return method in vars(thing) or overrides(type(thing), method)
    owner = next((cls for cls in thing.__mro__ if method in vars(cls)), None)
    return owner is not None and owner.__module__.partition(".")[0] != "keras"


def computes_as_its_class(layer: Any) -> bool:
    """Tells whether a layer of Keras's own has no method attached that computes something else."""
    return not any(name in vars(layer) for name in ("call", "convolution_op"))


@contextlib.contextmanager
def already_averaged(optimizer: Any) -> Iterator[None]:
    """Keeps a Keras optimizer from summing gradients that are the replicas' mean already.

    Clipping must see the gradient of the whole batch, as on one device; Keras clips first and sums
    afterwards.

    Raises:
        RuntimeError: if this version of Keras sums gradients in another way.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not hasattr(type(inner), _REDUCTION):
        raise RuntimeError(
            f"{type(inner).__name__} of Keras {keras.__version__} does not sum gradients the way "
            "that training on several devices relies on. Train on one device, or use Keras 3.15."
        )
    inner.__dict__[_REDUCTION] = lambda pairs: pairs
    try:
        yield
    finally:
        del inner.__dict__[_REDUCTION]


def slots_of(optimizer: Any, variable: keras.Variable) -> list[keras.Variable]:
    """Returns what an optimizer remembers of a variable entry by entry, such as its momentum.

    Averages of the weights and accumulated gradients are not among it.

    Args:
        optimizer: a Keras optimizer; one that is not built yet remembers nothing.
        variable: one of the variables that it moves; others have no slots.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    moved = getattr(inner, "_trainable_variables", None) or []
    places = [i for i, known in enumerate(moved) if known is variable]
    if not places:
        return []
    lists = [
        value
        for name, value in vars(inner).items()
        if isinstance(value, list) and len(value) == len(moved) and name not in _NO_SLOTS
    ]
    found = [slots[places[0]] for slots in lists]
    return [s for s in found if isinstance(s, keras.Variable) and s.shape == variable.shape]


def own_loss(model: keras.Model, wrapper: keras.Model, *arguments: Any) -> Any:
    """Returns what a model's own `compute_loss` makes of a loss that is compiled in a wrapper.

    Args:
        model: the model inside; what it asks its super class for is the wrapper's loss.
        wrapper: the model around it, compiled.
        *arguments: x, y, outputs, sample weights, and whether it is training.
    """
    model.__dict__["_compile_loss"] = wrapper._compile_loss
    return model._compute_loss(*arguments)
