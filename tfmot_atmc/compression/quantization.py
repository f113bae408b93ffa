# SPDX-License-Identifier: Apache-2.0
"""Quantisation of a trained model, without further training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.compression.compress import strip_compression
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.sites import find_slots
from tfmot_atmc.compression.wrapping import trainable_again
from tfmot_atmc.math import optimal_zero_kmeans, zero_kmeans
from tfmot_atmc.methods import Method
from tfmot_atmc.utils.cloning import copy_model
from tfmot_atmc.utils.keras_internals import flat_layers, own_variables

__all__ = ["WAYS", "quantize_after_training", "quantize_values", "stored_kernels"]

WAYS = ("uniform", "zero_kmeans")
"""The ways to choose the values."""

# Dynamic programming takes one pass over the values for every centre; above, Lloyd rounds do.
_MOST_OPTIMAL_CENTRES = 256
_MOST_OPTIMAL_VALUES = 2048
_LLOYD_ROUNDS = 100


def quantize_after_training(
    model: keras.Model, bits: int, how: str = "auto", *, grid: int | None = None
) -> keras.Model:
    """Returns a copy of a model whose kernels take few distinct values; nothing is trained.

    Args:
        model: a built, plain Keras model, of which every kernel that `compress` would take is
            quantised; or a `CompressedModel`, of which every stored factor (such as U, V and C) is
            quantised by itself. It is left as it is.
        bits: b, in 1..16, or 32 for an equal copy.
        how: how the values are chosen, see `quantize_values`. `"auto"` is `"uniform"`, but leaves a
            kernel exactly as it is where it has no more than 2^b distinct nonzero values, as small
            ones do, and no `grid` is asked for.
        grid: see `quantize_values`.

    Returns:
        A model of the same kind, not compiled, with at most 2^b distinct nonzero values in every
        kernel or factor. Zeros stay zeros, so sparsity and rank are kept; small nonzeros may become
        zero. A compressed model satisfies its constraints exactly, and its method, if that takes
        `bits`, says what they are now, so that `compression_report` counts codes and codebooks.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if the model is not built, has no kernel to quantise or cannot be copied, if a
            weight is not finite, or an argument is out of range.

    Source: the comparison with "quantised afterwards" in the rebuttal to Gui et al., "Model
    Compression with Adversarial Robustness", NeurIPS 2019.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.set_weights([np.array([[0.0], [0.6], [3.0]]), np.zeros(1)])
    >>> quantize_after_training(model, bits=3, how="uniform").get_weights()[0].ravel().tolist()
    [0.0, 1.0, 3.0]
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a Keras model or a model returned by compress(). "
            f"Received an object of type {type(model)}."
        )
    _check(bits, "uniform" if how == "auto" else how, grid)
    if isinstance(model, CompressedModel):
        return _quantized_factors(model, bits, how, grid)
    copy = copy_model(model)
    for name, variable in _stored(copy):
        _quantize_variable(name, variable, bits, how, grid)
    return copy


def quantize_values(
    values: np.ndarray, bits: int, how: str = "uniform", *, grid: int | None = None
) -> np.ndarray:
    """Quantises one array to at most 2^bits distinct nonzero values; zeros stay zeros.

    Args:
        values: finite floating-point array of any shape.
        bits: b, in 1..16, or 32 for an equal copy.
        how: `"uniform"`: the integers from -n to n, with n = 2^(b-1) - 1 but at least 1, times the
            scale max|values| / n, and every value goes to the nearest; 1 and 2 bits are then the
            same. `"zero_kmeans"`: the 2^b values, with zero besides, that leave the least squared
            error; surely the least up to 8 bits and 2,048 distinct values, and in any case no more
            than that of `"uniform"`.
        grid: None, or n in 1..32767 to confine what `"zero_kmeans"` finds to integers in [-n, n]
            times one scale, which survive int8 export bit for bit with n = 127. Uniform values are
            such integers anyway; an n too small for them is refused. With a grid the error may
            exceed that of `"uniform"`.

    Returns:
        An array of the shape and dtype of `values`, rounded to float32 in between.

    Raises:
        ValueError: if a value is not finite, or an argument is out of range.

    Example:

    >>> quantize_values(np.array([0.0, 1.0, 2.0, 10.0]), 1).tolist()
    [0.0, 0.0, 0.0, 10.0]
    >>> quantize_values(np.array([0.0, 1.0, 2.0, 10.0]), 1, "zero_kmeans").tolist()
    [0.0, 1.5, 1.5, 10.0]
    """
    _check(bits, how, grid)
    values = np.asarray(values)
    if not np.all(np.isfinite(values.astype(np.float32))):
        raise ValueError("`values` must be finite as float32. Received NaN or infinite entries.")
    if bits == 32 or not np.any(values):
        return values.copy()
    single = values.astype(np.float32)
    found = _uniform(single, bits)
    if how == "zero_kmeans":
        found = _clustered(single, 2**bits, found, grid)
    return found.astype(values.dtype)


def stored_kernels(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns what `quantize_after_training` acts on, by name: kernels, or factors of kernels.

    Args:
        model: a built Keras model, plain or compressed.

    Raises:
        ValueError: if there is none.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)], name="small")
    >>> [kernel.shape for kernel in stored_kernels(model).values()]
    [(3, 2)]
    """
    return {name: keras.ops.convert_to_numpy(variable) for name, variable in _stored(model)}


def _check(bits: int, how: str, grid: int | None) -> None:
    whole = isinstance(bits, int) and not isinstance(bits, bool)
    if not whole or not (1 <= bits <= 16 or bits == 32):
        raise ValueError(f"`bits` must be a whole number in 1..16, or 32. Received {bits!r}.")
    if how not in WAYS:
        raise ValueError(f"`how` must be one of {WAYS}. Received {how!r}.")
    if grid is None:
        return
    if isinstance(grid, bool) or not isinstance(grid, int) or not 1 <= grid <= 32767:
        raise ValueError(f"`grid` must be None or a whole number in 1..32767. Received {grid!r}.")
    if how == "uniform" and bits != 32 and grid < _levels(bits):
        raise ValueError(
            f"Uniform values of {bits} bits are integers up to {_levels(bits)} times a scale. Take "
            f"fewer bits, or no `grid`. Received grid={grid}."
        )


# --- values -------------------------------------------------------------------------------------


def _levels(bits: int) -> int:
    return max(2 ** (bits - 1) - 1, 1)


def _uniform(values: np.ndarray, bits: int) -> np.ndarray:
    levels = _levels(bits)
    smallest = np.finfo(np.float32).smallest_subnormal
    scale = np.maximum(np.abs(values).max() / np.float32(levels), smallest)
    # levels * scale is rounded, so values quantised before may have a neighbour's scale.
    for known in (scale, *(np.nextafter(scale, np.float32(end)) for end in (0, np.inf))):
        if known > 0 and np.array_equal(_codes(values, known, levels) * known, values):
            return values.copy()
    return _codes(values, scale, levels) * scale


def _codes(values: np.ndarray, scale: np.float32, levels: int) -> np.ndarray:
    quotients = values.astype(np.float64) / np.float64(scale)
    return np.clip(np.rint(quotients), -levels, levels).astype(np.float32)


def _clustered(
    values: np.ndarray, num_values: int, rival: np.ndarray, grid: int | None
) -> np.ndarray:
    """Clusters to the optimum, or from two starts, one of them a rival's values, to the better."""
    size = np.unique(values[values != 0]).size
    if grid is None and size <= num_values:
        return values.copy()
    if grid is None and size <= _MOST_OPTIMAL_VALUES and num_values <= _MOST_OPTIMAL_CENTRES:
        return np.asarray(optimal_zero_kmeans(values, num_values).values)
    distinct = np.unique(rival[rival != 0])
    start = np.zeros(num_values, np.float32)
    start[: distinct.size] = distinct
    if num_values <= _MOST_OPTIMAL_CENTRES:
        found = optimal_zero_kmeans(values, num_values, initial_codebook=start, grid=grid)
        return np.asarray(found.values)
    results = [
        zero_kmeans(
            tf.constant(values),
            num_values,
            initial_codebook=initial,
            max_iterations=_LLOYD_ROUNDS,
            grid=grid,
        )
        for initial in (None, start)
    ]
    return min(results, key=lambda result: float(result.error)).values.numpy()


# --- models -------------------------------------------------------------------------------------


def _stored(model: keras.Model) -> list[tuple[str, keras.Variable]]:
    """Returns the variables to quantise, each once, with unique names."""
    if isinstance(model, CompressedModel):
        return [(f.name, f.variable) for kernel in model.kernels for f in kernel.factors]
    found: dict[str, keras.Variable] = {}
    reasons = []
    for layer in flat_layers(model):
        slots = find_slots(layer)
        if isinstance(slots, str):
            if own_variables(layer):
                reasons.append(f"{layer.name}: {slots}")
            continue
        for slot in slots:
            if any(slot.variable is variable for variable in found.values()):
                continue
            name, number = slot.variable.path, 1
            while name in found:
                name, number = f"{slot.variable.path}_{number}", number + 1
            found[name] = slot.variable
    if not found:
        why = "; ".join(reasons) or "no weights"
        raise ValueError(f"Model '{model.name}' has no kernel to quantise ({why}).")
    return list(found.items())


def _quantize_variable(
    name: str, variable: keras.Variable, bits: int, how: str, grid: int | None
) -> None:
    value = keras.ops.convert_to_numpy(variable)
    if how == "auto":
        if grid is None and np.unique(value[value != 0]).size <= 2**bits:
            if np.isfinite(value).all():
                return
        how = "uniform"
    try:
        variable.assign(quantize_values(value, bits, how, grid=grid))
    except ValueError as error:
        raise ValueError(f"'{name}' cannot be quantised: {error}") from error


def _quantized_factors(
    model: CompressedModel, bits: int, how: str, grid: int | None
) -> CompressedModel:
    if bits == 32:
        return _copy_compressed(model, model.method)
    copy = _copy_compressed(model, _with_bits(model.method, min(bits, model.bits)))
    feasible = model.finalized_factors()
    for (name, variable), value in zip(_stored(copy), feasible, strict=True):
        variable.assign(value)
        _quantize_variable(name, variable, bits, how, grid)
    copy.finalize()
    return copy


def _with_bits(method: Method, bits: int) -> Method:
    """Returns the method with codebooks of so many bits, if it can have any."""
    config: dict[str, Any] = method.get_config()
    if "bits" not in config:
        return method
    config["bits"] = bits
    if "grid" in config:
        config["grid"] = None  # the values are chosen already
    return type(method).from_config(config)


def _copy_compressed(model: CompressedModel, method: Method) -> CompressedModel:
    """Returns a copy under a method with the same kernels, with the state that both have."""
    config, plain = model.get_config(), strip_compression(model)
    with trainable_again(plain, config.pop("frozen")):
        copy = CompressedModel(**{**config, "model": plain, "method": method})
    copy.model.set_weights(model.model.get_weights())
    own = {variable.name: variable for variable in own_variables(copy)}
    for variable in own_variables(model):
        other = own.get(variable.name)
        if other is not None and tuple(other.shape) == tuple(variable.shape):
            other.assign(variable)
    return copy
