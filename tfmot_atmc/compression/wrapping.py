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
    site_of,
    sites_in_model,
)
from tfmot_atmc.constraints import Factor
from tfmot_atmc.kernels import Kernel, PlainKernel, Site, thin_conv2d
from tfmot_atmc.methods import Method
from tfmot_atmc.utils.keras_internals import (
    flat_layers,
    overrides,
    own_trainable_variables,
    own_variables,
    set_own_variables,
    unlocked,
)

# Kernels composed once for a whole train step, by the identity of the wrapped kernel.
_COMPOSED: contextvars.ContextVar[dict[int, tf.Tensor] | None] = contextvars.ContextVar(
    "composed_kernels", default=None
)


_BOUND = (
    "not factorised, for its kernel_constraint is meant for the whole kernel; it acts at each step "
    "before the budget and the codebook do"
)


@dataclass(frozen=True)
class LayerDecision:
    """What was done with one layer.

    Attributes:
        layer: the layer's path in the model.
        type: the layer's class name.
        action: `"factorized"`, `"compressed"` or `"left alone"`.
        reason: why it was left alone or not factorised; empty otherwise.
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
    regularizer: Callable[[Any], Any] | None = None

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

    def whole(self) -> tf.Tensor:
        """Returns the kernel, as it is composed for the calls of this context."""
        composed = _COMPOSED.get()
        value = None if composed is None else composed.get(id(self))
        return self.compose() if value is None else value

    def read(self) -> tf.Tensor:
        """Returns what the layer multiplies with, in the layer's compute dtype."""
        return tf.cast(self.whole(), self.layer.compute_dtype)


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


def holds_composed(kernels: Sequence[WrappedKernel]) -> bool:
    """Tells whether this is a context in which all these kernels are composed already."""
    composed = _COMPOSED.get()
    return composed is not None and all(id(kernel) in composed for kernel in kernels)


def counted(
    kernels: Sequence[WrappedKernel], values: Sequence[Any] | None = None, role: str = "weight"
) -> list[Any]:
    """Returns the factors of a role, those that count by default, or their part of all values."""
    factors = [factor for kernel in kernels for factor in kernel.factors]
    given = factors if values is None else values
    return [value for factor, value in zip(factors, given, strict=True) if factor.role == role]


def constrained(
    kernels: Sequence[WrappedKernel],
    step: Callable[[list], list],
    values: Sequence[Any],
    role: str = "weight",
) -> list[Any]:
    """Returns the values of all factors after a constraint's step on those of its role."""
    new = iter(step(counted(kernels, values, role)))
    factors = [factor for kernel in kernels for factor in kernel.factors]
    return [next(new) if f.role == role else v for f, v in zip(factors, values, strict=True)]


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
        bound = any(slot.variable.constraint is not None for slot in found)
        decisions.append(LayerDecision(path, cls, "compressed", _BOUND if bound else "", size))
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

    def save_own_variables(self: Any, store: Any) -> None:
        if not overrides(_plain_class(self), "save_own_variables"):
            keras.layers.Layer.save_own_variables(self, store)
            return
        with plain_layers([self]):
            self.save_own_variables(store)
        for name, variable in _extras(self).items():
            store[name] = variable

    def load_own_variables(self: Any, store: Any) -> None:
        if not overrides(_plain_class(self), "save_own_variables"):
            keras.layers.Layer.load_own_variables(self, store)
        else:
            extras = _extras(self)
            own = {key: store[key] for key in store.keys() if key not in extras}
            with plain_layers([self]):
                self.load_own_variables(own)
            for name, variable in extras.items():
                variable.assign(store[name])


def _plain_class(layer: keras.layers.Layer) -> type:
    return type(layer).__mro__[2]


def _extras(layer: Any) -> dict[str, keras.Variable]:
    """The variables that wrapping added to a layer, by a name for files."""
    return {
        f"{kernel.attribute}:{part}": variable
        for kernel in layer._wrapped_kernels.values()
        for part, variable in kernel.variables.items()
        if part != kernel.kernel.main
    }


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
    if thin:
        return thin_conv2d(inputs, kernel)
    return super(type(self), self).convolution_op(inputs, kernel)


_CLASSES: dict[tuple[type, tuple[str, ...]], type] = {}


def _composed_class(base: type, attributes: tuple[str, ...]) -> type:
    if (base, attributes) not in _CLASSES:

        def composed(attribute: str) -> property:
            return property(lambda self: self.__dict__["_wrapped_kernels"][attribute].read())

        body: dict[str, Any] = {name: composed(name) for name in attributes}
        body["__module__"] = base.__module__
        if issubclass(base, keras.layers.Conv2D) and not overrides(base, "convolution_op"):
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
        # It is meant for the kernel, not for one of its factors.
        wrapped.regularizer, slot.variable.regularizer = slot.variable.regularizer, None
        values = kernel.initial_values(keras.ops.convert_to_numpy(slot.variable))
        with unlocked(layer):
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
def plain_layers(layers: Sequence[keras.layers.Layer]) -> Iterator[None]:
    """Gives wrapped layers their own classes and variables back inside the context."""
    changed = []
    try:
        for layer in {id(layer): layer for layer in layers}.values():
            added = {id(variable) for variable in _extras(layer).values()}
            plain = [v for v in own_trainable_variables(layer) if id(v) not in added]
            changed.append((layer, type(layer), set_own_variables(layer, plain)))
            layer.__class__ = _plain_class(layer)
        yield
    finally:
        for layer, cls, variables in changed:
            layer.__class__ = cls
            set_own_variables(layer, variables)
