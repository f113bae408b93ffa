# SPDX-License-Identifier: Apache-2.0
"""The one way to copy a Keras model: what a layer is, knows and remembers, and a comparison.

A copy is made from the configuration; then every layer hands its state to its counterpart as it
would hand it to a file: variables, what its `save_own_variables` and `save_assets` keep (adapted
statistics, vocabularies), random states, `trainable` flags, methods attached to the object. The
copy must then give the outputs of the original; one that does not is refused.
"""

from __future__ import annotations

import functools
import os
import tempfile
import types
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tfmot_atmc.utils.comparison import check_outputs, probe
from tfmot_atmc.utils.keras_internals import (
    flat_layers,
    lambda_output_shape,
    own_variables,
    random_states,
)

__all__ = ["copy_layer", "copy_model", "copy_state", "own_objects"]

_ADVICE = (
    "Give the class a get_config() that returns its constructor's arguments, or pass "
    "in_place=True to let the model itself be changed."
)
# Keras wraps these in every object; they are no methods of the user's.
_WRAPPED_BY_KERAS = ("build", "quantize")
# Attached functions that compression asks for by name; every other one may be a mere helper.
_ASKED_FOR = ("get_compressible_weights",)


def copy_model(
    model: keras.Model, *, dtype: str | None = None, expected: Any = None, check: bool = True
) -> keras.Model:
    """Returns a copy with variables of its own, equal state and outputs, and no optimizer.

    Args:
        model: a built Keras model.
        dtype: None, or the dtype in which the copy holds its variables and computes.
        expected: the `Probe` whose outputs the copy must give; None for those of the model.
        check: whether to compare outputs, where inputs for the model can be made up.

    Returns:
        A model of the same class, layers and names.

    Raises:
        ValueError: if the model is not built, cannot be rebuilt from its own configuration, has a
            method attached that cannot be carried over, or the copy's outputs differ.
    """
    if not model.built or (not model.weights and model.count_params() == 0):
        raise ValueError(
            f"Model '{model.name}' is not built, so it has no weights to compress. Call it on a "
            "batch, or model.build(input_shape), first."
        )
    if expected is None and check:
        expected = probe(model)
    copy = _rebuilt(model, dtype)
    copy_state(model, copy)
    if check:
        check_outputs(
            expected,
            copy,
            f"The copy of model '{model.name}'",
            "A layer keeps something that is neither in its configuration nor in its weights: "
            "write it in save_own_variables() and load_own_variables() (or save_assets() and "
            "load_assets()), or pass in_place=True to let the model itself be changed.",
            tolerance=1e-4 if dtype is None else 0.05,
        )
    return copy


def copy_layer(layer: Any, config: Mapping[str, Any]) -> Any:
    """Returns a new layer of the same kind, without weights; `copy_state` follows once it is built.

    Args:
        layer: a layer.
        config: its configuration, with what is to change.

    Raises:
        ValueError: if the layer cannot be rebuilt from its configuration.
    """
    if isinstance(layer, keras.layers.Lambda):
        # The very function: one that is read back from a config has lost the names that it uses.
        return keras.layers.Lambda(
            layer.function,
            output_shape=lambda_output_shape(layer),
            mask=layer.mask,
            arguments=layer.arguments,
            name=layer.name,
            dtype=layer.dtype_policy,
        )
    try:
        with keras.saving.custom_object_scope(own_objects(flat_layers(layer))):
            return type(layer).from_config(dict(config))
    except Exception as error:
        raise ValueError(
            f"Layer '{layer.name}' cannot be rebuilt from its own configuration. Give its class a "
            "get_config() that returns its constructor's arguments."
        ) from error


def copy_state(layer: keras.layers.Layer, other: keras.layers.Layer) -> None:
    """Gives a new layer or model all that a built one of the same kind and its layers hold.

    Args:
        layer: the original.
        other: a layer of the same class, built alike; it is changed.

    Raises:
        ValueError: if their layers or weights are not alike, or a method attached to the original
            belongs to it alone.
    """
    pairs = _pairs(layer, other)
    for one, its_copy in pairs:
        _copy_own_state(one, its_copy)
    _copy_flags(pairs)


def _copy_own_state(layer: Any, other: Any) -> None:
    mine, theirs = own_variables(layer), own_variables(other)
    shapes = [[tuple(v.shape) for v in variables] for variables in (mine, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Layer '{layer.name}', rebuilt from its own configuration, has other weights than "
            f"before (shapes {shapes[1]} instead of {shapes[0]}). {_ADVICE}"
        )
    for variable, value in zip(theirs, mine, strict=True):
        variable.assign(keras.ops.convert_to_numpy(value))
    _copy_saved_state(layer, other)
    for state, value in zip(random_states(other), random_states(layer), strict=False):
        state.assign(keras.ops.convert_to_numpy(value))
    _copy_methods(layer, other)
    for name, value in vars(layer).items():
        # A function read back from a config has lost the names that it uses.
        held = isinstance(value, types.FunctionType) and _is_own(value) and name in vars(other)
        if held and name not in _WRAPPED_BY_KERAS:
            setattr(other, name, value)


def _rebuilt(model: keras.Model, dtype: str | None) -> keras.Model:
    config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    if dtype is not None:
        config = _with_dtype(config, dtype)
    try:
        return keras.saving.deserialize_keras_object(
            config, custom_objects=own_objects(flat_layers(model)), safe_mode=False
        )
    except Exception as error:
        raise ValueError(
            f"Model '{model.name}' cannot be rebuilt from its own configuration. {_ADVICE}"
        ) from error


def _with_dtype(config: Any, dtype: str) -> Any:
    """Returns a serialised model whose floating layers and inputs are of one dtype."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy":
            return {**config, "config": {"name": dtype}}
        return {key: _with_dtype(value, dtype) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_with_dtype(value, dtype) for value in config)
    return dtype if config in ("float16", "bfloat16", "float64", "float32") else config


def own_objects(layers: list[Any]) -> dict[str, Any]:
    """Returns the classes and functions that layers use and that Keras would not find by itself."""
    found: dict[str, Any] = {}
    for layer in layers:
        for thing in (layer, *vars(layer).values()):
            if isinstance(thing, types.FunctionType):
                if _is_own(thing):
                    found[thing.__name__] = thing
            elif hasattr(type(thing), "get_config") and _is_own(type(thing)):
                found[type(thing).__name__] = type(thing)
    return found


def _is_own(thing: Any) -> bool:
    return (thing.__module__ or "").partition(".")[0] not in ("keras", "tensorflow", "builtins")


def _pairs(model: Any, copy: Any) -> list[tuple[Any, Any]]:
    """Returns each layer with its counterpart; a deferred model may have named its inputs since."""
    layers, others = (
        [layer for layer in flat_layers(m) if not isinstance(layer, keras.layers.InputLayer)]
        for m in (model, copy)
    )
    if [type(layer) for layer in layers] != [type(layer) for layer in others]:
        raise ValueError(
            f"'{model.name}', rebuilt from its own configuration, has other layers than "
            f"before ({len(others)} instead of {len(layers)}, or of other classes). {_ADVICE}"
        )
    return list(zip(layers, others, strict=True))


def _copy_saved_state(layer: Any, other: Any) -> None:
    """Carries over what a layer saves beside its variables, as it would through a file."""
    if type(layer).load_own_variables not in _plain_loaders():
        store: dict[str, Any] = {}
        layer.save_own_variables(store)
        other.load_own_variables(
            {key: keras.ops.convert_to_numpy(value) for key, value in store.items()}
        )
    if hasattr(layer, "save_assets") and hasattr(layer, "load_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            if os.listdir(folder):
                other.load_assets(folder)


@functools.cache
def _plain_loaders() -> tuple[Any, ...]:
    """How layers load that keep nothing but variables."""
    kinds = (
        keras.layers.Layer,
        keras.layers.Dense,
        keras.layers.Conv2D,
        keras.layers.EinsumDense,
        keras.layers.Embedding,
    )
    return tuple(kind.load_own_variables for kind in kinds)


def _copy_flags(pairs: list[tuple[Any, Any]]) -> None:
    # From the outside in: Keras sets the flags of all that is inside.
    for layer, other in pairs:
        if other.trainable != layer.trainable:
            other.trainable = layer.trainable
    for layer, other in pairs:
        for variable, value in zip(own_variables(other), own_variables(layer), strict=True):
            if variable.trainable != value.trainable:
                variable.trainable = value.trainable


def _copy_methods(layer: Any, other: Any) -> None:
    for name, value in vars(layer).items():
        bound = isinstance(value, types.MethodType) and value.__self__ is layer
        if name in vars(other) or not (bound or isinstance(value, types.FunctionType)):
            continue
        if not _holds_layers(value):
            setattr(other, name, types.MethodType(value.__func__, other) if bound else value)
        elif callable(getattr(type(layer), name, None)) or name in _ASKED_FOR:
            raise ValueError(
                f"Layer '{layer.name}' has `{name}` attached to the object itself, and it refers "
                "to the layers of this very model, so that a copy would run them too. Write it "
                "as a method of a class, or pass in_place=True."
            )


def _holds_layers(function: Any) -> bool:
    """Whether a function's closure or defaults hold a layer, a variable, or a method of one."""
    function = getattr(function, "__func__", function)

    def held() -> Iterator[Any]:
        for cell in getattr(function, "__closure__", None) or ():
            yield cell.cell_contents
        yield from getattr(function, "__defaults__", None) or ()

    kinds = (keras.layers.Layer, keras.Variable)
    return any(isinstance(getattr(v, "__self__", v), kinds) for v in held())
