# SPDX-License-Identifier: Apache-2.0
"""How the kernels of a Keras model are replaced by composed ones.

A layer keeps its object, name and configuration; its class is exchanged for a subclass in which
the kernel attribute is a property that composes the factors. That works alike for Sequential,
functional, nested, shared and subclassed models.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints import Factor
from tfmot_atmc.kernels import Kernel, PlainKernel, thin_conv2d

# Kernels composed once for a whole train step, by the identity of the wrapped kernel.
_COMPOSED: contextvars.ContextVar[dict[int, tf.Tensor] | None] = contextvars.ContextVar(
    "composed_kernels", default=None
)

_UNTOUCHED = (
    keras.layers.Embedding,
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
    keras.layers.Normalization,
)


@dataclass(frozen=True)
class Slot:
    """A kernel that may be compressed: where it sits, and whether it may be factorised."""

    layer: keras.layers.Layer
    attribute: str
    variable: keras.Variable
    factorizable: bool


@dataclass(frozen=True)
class LayerDecision:
    """What was done with one layer.

    Attributes:
        layer: the layer's path in the model.
        type: the layer's class name.
        action: `"factorized"`, `"compressed"` or `"left alone"`.
        reason: why it was left alone; empty otherwise.
        parameters: number of parameters of the kernels (all weights, when left alone).
    """

    layer: str
    type: str
    action: str
    reason: str
    parameters: int


@dataclass
class WrappedKernel:
    """One kernel of one layer, composed from variables."""

    name: str
    layer: keras.layers.Layer
    attribute: str
    kernel: Kernel
    variables: dict[str, keras.Variable] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the composed kernel."""
        return tuple(self.variables[self.kernel.main].shape)

    @property
    def factors(self) -> list[Factor]:
        """The factors, main one first."""
        return [
            Factor(
                f"{self.name}:{part}",
                part,
                variable,
                part in self.kernel.growable,
                self.kernel.separable,
            )
            for part, variable in self.variables.items()
        ]

    def compose(self, values: Mapping[str, Any] | None = None) -> tf.Tensor:
        """Returns the kernel, from the variables or from given factor values."""
        if values is None:
            values = {part: tf.convert_to_tensor(v.value) for part, v in self.variables.items()}
        return self.kernel.compose(values)

    def read(self) -> tf.Tensor:
        """Returns what the layer multiplies with, in the layer's compute dtype."""
        composed = _COMPOSED.get()
        value = None if composed is None else composed.get(id(self))
        value = self.compose() if value is None else value
        return tf.cast(value, self.layer.compute_dtype)


@contextlib.contextmanager
def composed_kernels(
    kernels: Sequence[WrappedKernel], values: Sequence[tf.Tensor] | None = None
) -> Iterator[None]:
    """Composes all kernels once, for every layer call inside the context.

    Args:
        kernels: the wrapped kernels of a model.
        values: None for the variables' values, or one tensor for every factor of every kernel.
    """
    composed: dict[int, tf.Tensor] = {}
    position = 0
    for kernel in kernels:
        given = None
        if values is not None:
            given = dict(zip(kernel.variables, values[position:], strict=False))
            position += len(kernel.variables)
        composed[id(kernel)] = kernel.compose(given)
    token = _COMPOSED.set(composed)
    try:
        yield
    finally:
        _COMPOSED.reset(token)


# --- which kernels ------------------------------------------------------------------------------


def flat_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the model itself and all layers inside it, each once, in a fixed order."""
    return list(model._flatten_layers(include_self=True, recursive=True))


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables of the layer itself, without those of layers inside it."""
    return list(layer._trainable_variables) + list(layer._non_trainable_variables)


def layer_state(model: keras.layers.Layer) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Returns what a forward pass may change, such as moving averages, with its value now."""
    return [
        (variable, tf.identity(variable.value))
        for layer in flat_layers(model)
        for variable in layer._non_trainable_variables
    ]


def place_randomness(model: keras.layers.Layer, step: tf.Tensor) -> None:
    """Ties the random draws of layers such as Dropout to the step, so that a resumed run repeats.

    Keras saves the counters of its random seeds neither in weights nor in backups.

    Args:
        model: the model whose layers draw.
        step: scalar integer tensor, optimizer steps taken so far.
    """
    for layer in flat_layers(model):
        for generator in layer._seed_generators:
            state = tf.convert_to_tensor(generator.state)
            counter = tf.cast(step, state.dtype) * 4096  # more than the draws of one step
            generator.state.assign(tf.stack([state[0], counter]))


def find_slots(layer: keras.layers.Layer) -> list[Slot] | str:
    """Returns the compressible kernels of one layer, or the reason why there are none.

    Args:
        layer: a layer; layers inside it are not looked at.

    Returns:
        A list of slots, or a reason. A layer with `get_compressible_weights` decides itself; of
        the others Dense, Conv1D and Conv2D are factorizable unless grouped, and grouped and
        depthwise convolutions compressible.
    """
    if not layer.built:
        return "not built"
    if not layer.trainable:
        return "frozen (trainable=False)"
    if getattr(layer, "quantization_mode", None):
        return f"already quantized ({layer.quantization_mode})"
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled; merge it first"
    if hasattr(layer, "get_compressible_weights"):
        return [
            Slot(layer, attribute_of(layer, variable), variable, False)
            for variable in layer.get_compressible_weights()
        ]
    if isinstance(layer, _UNTOUCHED):
        return "normalisation or embedding"
    if isinstance(layer, (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)):
        variable = layer._kernel
        return [Slot(layer, "kernel", variable, getattr(layer, "groups", 1) == 1)]
    if isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        return [Slot(layer, "kernel", layer.kernel, False)]
    return "no rule for this layer; give it get_compressible_weights()"


def attribute_of(layer: keras.layers.Layer, variable: keras.Variable) -> str:
    """Returns the name of the attribute under which a layer reads one of its variables."""
    for name, value in vars(layer).items():
        if value is variable:
            public = name.lstrip("_")
            return public if isinstance(getattr(type(layer), public, None), property) else name
    raise ValueError(
        f"get_compressible_weights() of layer '{layer.name}' returned a variable that is not an "
        "attribute of the layer itself. Return variables that the layer holds, such as "
        f"self.kernel. Received {variable!r}."
    )


def wrap_kernels(
    model: keras.layers.Layer,
    kernel_for: Callable[[bool], Kernel],
    selected: Callable[[int, keras.layers.Layer], bool] = lambda index, layer: True,
) -> tuple[list[WrappedKernel], list[LayerDecision]]:
    """Replaces the compressible kernels of a model, in place.

    Args:
        model: a built model or layer.
        kernel_for: returns the kernel for a slot, given whether it may be factorised.
        selected: whether to consider the layer at an index of `flat_layers(model)`.

    Returns:
        The wrapped kernels, and a decision for every layer that has weights.
    """
    layers = flat_layers(model)
    owners: dict[int, int] = {}
    for layer in layers:
        for variable in own_variables(layer):
            owners[id(variable)] = owners.get(id(variable), 0) + 1
    wrapped: list[WrappedKernel] = []
    decisions: list[LayerDecision] = []
    for index, layer in enumerate(layers):
        variables = own_variables(layer)
        if not variables:
            continue
        found: list[Slot] | str = find_slots(layer)
        if not selected(index, layer):
            found = "not selected"
        elif not isinstance(found, str):
            if any(owners[id(slot.variable)] > 1 for slot in found):
                found = "its kernel is shared with another layer"
            elif not found:
                found = "get_compressible_weights() returned nothing"
        path = layer.path or layer.name
        if isinstance(found, str):
            size = sum(int(np.prod(v.shape)) for v in variables)
            decisions.append(LayerDecision(path, type(layer).__name__, "left alone", found, size))
            continue
        new = _wrap_layer(layer, found, kernel_for)
        wrapped += new
        plain = all(isinstance(kernel.kernel, PlainKernel) for kernel in new)
        decisions.append(
            LayerDecision(
                path,
                type(layer).__mro__[2].__name__,
                "compressed" if plain else "factorized",
                "",
                sum(int(np.prod(kernel.shape)) for kernel in new),
            )
        )
    _make_names_unique(wrapped)
    return wrapped, decisions


def _make_names_unique(kernels: list[WrappedKernel]) -> None:
    seen: dict[str, int] = {}
    for kernel in kernels:
        seen[kernel.name] = seen.get(kernel.name, 0) + 1
        if seen[kernel.name] > 1:
            kernel.name = f"{kernel.name}_{seen[kernel.name] - 1}"


# --- the exchange of class ------------------------------------------------------------------------


class _ComposedKernels:
    """Mixin of the exchanged classes: saves the factors, not the composed kernel."""

    def save_own_variables(self, store: Any) -> None:
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store: Any) -> None:
        keras.layers.Layer.load_own_variables(self, store)


def _convolution_op(self: Any, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Takes the fast path for single-channel images on a CPU, else the layer's own."""
    thin = (
        kernel.shape[2] == 1
        and self.groups == 1
        and self.padding == "valid"
        and self.data_format == "channels_last"
        and set(self.strides) | set(self.dilation_rate) == {1}
        and None not in inputs.shape[1:]
        and not tf.config.list_logical_devices("GPU")
    )
    return (
        thin_conv2d(inputs, kernel)
        if thin
        else super(type(self), self).convolution_op(inputs, kernel)
    )


_CLASSES: dict[tuple[type, tuple[str, ...]], type] = {}


def _composed_class(base: type, attributes: tuple[str, ...]) -> type:
    if (base, attributes) not in _CLASSES:

        def composed(attribute: str) -> property:
            return property(lambda self: self.__dict__["_wrapped_kernels"][attribute].read())

        body: dict[str, Any] = {name: composed(name) for name in attributes}
        body["__module__"] = base.__module__
        if issubclass(base, keras.layers.Conv2D):
            body["convolution_op"] = _convolution_op
        _CLASSES[base, attributes] = type(
            f"Compressed{base.__name__}", (_ComposedKernels, base), body
        )
    return _CLASSES[base, attributes]


def _wrap_layer(
    layer: keras.layers.Layer, slots: Sequence[Slot], kernel_for: Callable[[bool], Kernel]
) -> list[WrappedKernel]:
    path = layer.path or layer.name
    made = []
    for slot in slots:
        kernel = kernel_for(slot.factorizable and len(slot.variable.shape) >= 2)
        name = f"{path}/{slot.attribute.lstrip('_')}"
        wrapped = WrappedKernel(name, layer, slot.attribute, kernel)
        values = kernel.initial_values(keras.ops.convert_to_numpy(slot.variable))
        layer._tracker.unlock()
        for part, value in values.items():
            if part == kernel.main:
                slot.variable.assign(value)
                wrapped.variables[part] = slot.variable
                continue
            wrapped.variables[part] = layer.add_weight(
                name=f"{slot.attribute.lstrip('_')}_{part}",
                shape=value.shape,
                dtype=slot.variable.dtype,
                initializer="zeros",
            )
            wrapped.variables[part].assign(value)
        layer._tracker.lock()
        made.append(wrapped)
    attributes = tuple(slot.attribute for slot in slots)
    layer.__dict__["_wrapped_kernels"] = {w.attribute: w for w in made}
    layer.__class__ = _composed_class(type(layer), attributes)
    return made


@contextlib.contextmanager
def plain_classes(kernels: Sequence[WrappedKernel]) -> Iterator[None]:
    """Gives the layers their own classes back inside the context, for serialisation."""
    changed = {id(k.layer): (k.layer, type(k.layer)) for k in kernels}
    for layer, cls in changed.values():
        layer.__class__ = cls.__mro__[2]
    try:
        yield
    finally:
        for layer, cls in changed.values():
            layer.__class__ = cls
