# SPDX-License-Identifier: Apache-2.0
"""How the kernels of a Keras model are replaced by composed ones.

A layer keeps its object, name and configuration; its class is exchanged for a subclass in which
the kernel attribute is a property that composes the factors. That works alike for Sequential,
functional, nested, shared and subclassed models.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.compression.sites import (
    Slot,
    find_slots,
    flat_layers,
    own_variables,
    site_of,
    sites_in_model,
)
from tfmot_atmc.constraints import Factor
from tfmot_atmc.kernels import Kernel, PlainKernel, Site, thin_conv2d
from tfmot_atmc.methods import Method

# Kernels composed once for a whole train step, by the identity of the wrapped kernel.
_COMPOSED: contextvars.ContextVar[dict[int, tf.Tensor] | None] = contextvars.ContextVar(
    "composed_kernels", default=None
)


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

    site: Site
    layer: keras.layers.Layer
    attribute: str
    kernel: Kernel
    costs: dict[str, float] = field(default_factory=dict)
    variables: dict[str, keras.Variable] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its site, such as `"dense/kernel"`."""
        return self.site.name

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
                self.site,
                self.kernel.roles.get(part, "weight"),
                self.costs.get(part, 1.0),
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


def counted(kernels: Sequence[WrappedKernel], values: Sequence[Any] | None = None) -> list[Any]:
    """Returns the factors on which constraints act, or of one value for each factor theirs."""
    factors = [factor for kernel in kernels for factor in kernel.factors]
    given = factors if values is None else values
    return [value for factor, value in zip(factors, given, strict=True) if factor.counts]


def constrained(
    kernels: Sequence[WrappedKernel], step: Callable[[list], list], values: Sequence[Any]
) -> list[Any]:
    """Returns the values of all factors after a constraint's step on those on which it acts."""
    new = iter(step(counted(kernels, values)))
    factors = [factor for kernel in kernels for factor in kernel.factors]
    return [next(new) if f.counts else value for f, value in zip(factors, values, strict=True)]


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


def wrap_kernels(
    model: keras.layers.Layer, method: Method, selected: Sequence[int] | None = None
) -> tuple[list[WrappedKernel], list[LayerDecision]]:
    """Replaces the compressible kernels of a model, in place.

    Args:
        model: a built model or layer.
        method: says which kernel a site gets, and what entries of its factors cost.
        selected: indices in `flat_layers(model)` of the layers to consider; None for all.

    Returns:
        The wrapped kernels, and a decision for every layer that has weights.
    """
    decisions: list[LayerDecision] = []
    chosen: list[list[Slot]] = []
    for layer, found in _found_slots(model, selected):
        path, cls = layer.path or layer.name, type(layer).__name__
        if isinstance(found, str):
            size = sum(int(np.prod(v.shape)) for v in own_variables(layer))
            decisions.append(LayerDecision(path, cls, "left alone", found, size))
            continue
        chosen.append(found)
        size = sum(int(np.prod(slot.variable.shape)) for slot in found)
        decisions.append(LayerDecision(path, cls, "compressed", "", size))
    wrapped = _wrapped(model, chosen, method)
    factorized = {k.layer.path for k in wrapped if not isinstance(k.kernel, PlainKernel)}
    decisions = [
        replace(d, action="factorized") if d.layer in factorized and not d.reason else d
        for d in decisions
    ]
    return wrapped, decisions


def _found_slots(
    model: keras.layers.Layer, selected: Sequence[int] | None
) -> Iterator[tuple[keras.layers.Layer, list[Slot] | str]]:
    """Yields each layer that has weights, with its slots or the reason why it has none."""
    layers = flat_layers(model)
    owners: dict[int, int] = {}
    for layer in layers:
        for variable in own_variables(layer):
            owners[id(variable)] = owners.get(id(variable), 0) + 1
    for index, layer in enumerate(layers):
        if not own_variables(layer):
            continue
        found: list[Slot] | str = find_slots(layer)
        if selected is not None and index not in selected:
            found = "not selected"
        elif not isinstance(found, str):
            if any(owners[id(slot.variable)] > 1 for slot in found):
                found = "its kernel is shared with another layer"
            elif not found:
                found = "get_compressible_weights() returned nothing"
        yield layer, found


def _wrapped(
    model: keras.layers.Layer, chosen: Sequence[Sequence[Slot]], method: Method
) -> list[WrappedKernel]:
    """Wraps the slots of each layer, when all sites and their kernels are known."""
    slots = [slot for mine in chosen for slot in mine]
    sites = [
        site_of(s.layer, s.attribute, s.variable.shape, s.factorizable and s.variable.ndim >= 2)
        for s in slots
    ]
    sites = sites_in_model(model, [slot.layer for slot in slots], sites)
    # The argument was a bool, `factorizable`, and a method that still calls it so gets one.
    former = "factorizable" in inspect.signature(method.kernel_for).parameters
    made = iter(
        [(s, method.kernel_for(s.factorizable if former else s)) for s in sites]  # type: ignore[arg-type]
    )
    wrapped = []
    for mine in chosen:
        wrapped += _wrap_layer(mine, [next(made) for _ in mine], method)
    return wrapped


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
    slots: Sequence[Slot], planned: Sequence[tuple[Site, Kernel]], method: Method
) -> list[WrappedKernel]:
    layer = slots[0].layer
    made = []
    for slot, (site, kernel) in zip(slots, planned, strict=True):
        wrapped = WrappedKernel(site, layer, slot.attribute, kernel)
        values = kernel.initial_values(keras.ops.convert_to_numpy(slot.variable))
        layer._tracker.unlock()
        for part, value in values.items():
            if part == kernel.main:
                slot.variable.assign(value)
                wrapped.variables[part] = slot.variable
            else:
                wrapped.variables[part] = layer.add_weight(
                    name=f"{slot.attribute.lstrip('_')}_{part}",
                    shape=value.shape,
                    dtype=slot.variable.dtype,
                    initializer="zeros",
                )
                wrapped.variables[part].assign(value)
            wrapped.costs[part] = float(method.cost_of(site, part))
        layer._tracker.lock()
        made.append(wrapped)
    attributes = tuple(slot.attribute for slot in slots)
    layer.__dict__["_wrapped_kernels"] = {w.attribute: w for w in made}
    layer.__class__ = _composed_class(type(layer), attributes)
    return made


def frozen_layers(model: keras.layers.Layer, kernels: Sequence[WrappedKernel]) -> list[int]:
    """Returns the indices in `flat_layers(model)` of layers that were frozen after wrapping."""
    mine = {id(kernel.layer) for kernel in kernels if not kernel.layer.trainable}
    return [index for index, layer in enumerate(flat_layers(model)) if id(layer) in mine]


@contextlib.contextmanager
def trainable_again(model: keras.layers.Layer, frozen: Sequence[int]) -> Iterator[None]:
    """Lets layers be trained inside the context, so that they are wrapped as they were before."""
    layers = flat_layers(model)
    for index in frozen:
        layers[index].trainable = True
    try:
        yield
    finally:
        for index in frozen:
            layers[index].trainable = False


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
