# SPDX-License-Identifier: Apache-2.0
"""`compress` and `strip_compression`: into training, and out of it."""

from __future__ import annotations

import contextlib
import inspect
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfmot_atmc import attacks, methods
from tfmot_atmc.attacks.values import out_of_scale
from tfmot_atmc.compression.attacked import with_float_inputs
from tfmot_atmc.compression.continuing import continue_from, factors_of
from tfmot_atmc.compression.limits import Limits, within_limits
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.selection import MARK, Layers, selected_indices
from tfmot_atmc.compression.sites import find_slots
from tfmot_atmc.compression.stripping import plain_copy, tell_what_is_dead
from tfmot_atmc.compression.wrapper import dropped_methods
from tfmot_atmc.utils.cloning import copy_model
from tfmot_atmc.utils.registry import check_arguments, parameters


def compress(
    to_compress: Any,
    method: Any = "atmc",
    *,
    attack: Any = None,
    validation_attack: Any = None,
    objective: Any = None,
    attack_warmup: int = 0,
    layers: Layers = None,
    seed: int = 0,
    in_place: bool = False,
    max_bytes: int | str | None = None,
    max_macs: int | str | None = None,
    max_latency: float | str | None = None,
    latency_table: Any = None,
    **arguments: Any,
) -> Any:
    """Wraps a Keras model so that `fit` compresses it under adversarial training.

    The model given is left as it is: the result is a new model that starts from its weights. It
    must be compiled anew. Given a layer, or a list of layers, they are only marked: a model built
    with marked layers and then passed to `compress` has just those layers compressed.

    Args:
        to_compress: a built `keras.Model`, a `tf_keras` model (converted on the way in, TFMOT's
            wrappers stripped), a layer or a list of layers. A compressed model goes on under the
            new method, from its factors where the new kernels have the same ones.
        method: a `Method`, or the name of one, such as `"atmc"`.
        attack: None for clean training; an `Attack` used in training; or the name of one, such as
            `"pgd"`, whose own arguments are then among `arguments`.
        validation_attack: the attack used by `evaluate` and validation; None for `attack`, or for
            PGD-10 on its ball where that is ATTA.
        objective: `"adversarial"` (the paper's), `"half"` clean and half adversarial, or an
            `Objective`; None for the method's own, which is `"adversarial"` for most.
        attack_warmup: optimizer steps over which perturbations grow linearly to their full size.
        layers: None for all compressible layers, or for those of a compressed model that goes on; a
            list of layer names, or a function from a layer to whether it should be compressed.
        seed: seed of the attacks' randomness.
        in_place: replace the kernels of the model itself and do not copy it first.
        max_bytes: instead of a `ratio`, the size of the .tflite file that the trained model shall
            have, in bytes or as text such as `"24KB"`; the ratio is found by `plan_budget`, and
            `bits` is 8 where the method has codebooks. Export with `fit_to_bytes`, which holds to
            the size.
        max_macs: instead of a `ratio`, the most multiply-accumulates for one example, such as
            `"12M"`, with nonzeros alone; for methods that count them, see `plan_macs`.
        max_latency: instead of the ratio to which channels are dropped, milliseconds for one
            example, such as `"2ms"`; for methods that drop channels, see `plan_latency`.
        latency_table: measured operators of another device, as for `plan_latency`.
        **arguments: those of a `method` given by name, such as `ratio` and `bits`, and of an
            `attack` given by name, such as `epsilon` and `steps`.

    Returns:
        A `CompressedModel`; for a layer or list, the same layer or list, marked.

    Raises:
        ValueError: if the model is not built, has no compressible layer or cannot be copied, an
            argument is out of range, or no file of the model can be as small as `max_bytes`.
        TypeError: if `to_compress` is none of the above, or an argument is unknown or stands beside
            a method that is made already.

    Example:

    >>> import keras, tfmot_atmc as atmc
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> small = atmc.compress(model, "atmc", ratio=0.25, bits=4, attack="pgd", epsilon=8 / 255)
    >>> small.compression_report().dense_parameters, small.attack.steps
    (32, 7)
    """
    arguments, attack_arguments = _sorted_out(method, attack, arguments)
    if attack_arguments:
        attack = attacks.get(attack, **attack_arguments)
    _remark_on_scale(attack, validation_attack)
    if isinstance(to_compress, (list, tuple)):
        return type(to_compress)(
            layer if _is_weightless(layer) else _mark(layer) for layer in to_compress
        )
    if _comes_from(to_compress, "tf_keras"):
        to_compress, in_place = _from_tf_keras(to_compress), True
    if isinstance(to_compress, keras.layers.Layer) and not isinstance(to_compress, keras.Model):
        return _mark(to_compress)
    if not isinstance(to_compress, keras.Model):
        raise TypeError(
            "`to_compress` must be a keras.Model, a tf_keras model, a layer or a list of layers. "
            f"Received an object of type {type(to_compress)}."
        )
    factors = before = None
    if isinstance(to_compress, CompressedModel):
        factors, before = factors_of(to_compress), to_compress.selected
        to_compress, in_place = strip_compression(to_compress), True
    selected = before if layers is None and before else selected_indices(to_compress, layers)
    limits = Limits(max_bytes, max_macs, max_latency, latency_table)
    arguments = within_limits(to_compress, limits, method, arguments, selected)
    model = to_compress if in_place else copy_model(to_compress)
    if attack is not None or validation_attack is not None:
        model = with_float_inputs(model)
    compressed = CompressedModel(
        model,
        methods.get(method, **arguments),
        attack=attack,
        validation_attack=validation_attack,
        objective=objective,
        attack_warmup=attack_warmup,
        seed=seed,
        selected=selected,
    )
    if factors is not None:
        continue_from(compressed, factors)
    said = dropped_methods(model)
    if said is not None:
        warnings.warn(said, stacklevel=2)
    return compressed


def _remark_on_scale(*given: Any) -> None:
    """Warns of an epsilon in other units than the bounds of the inputs."""
    for attack in given:
        low, high = attack.bounds if isinstance(attack, attacks.Attack) else (None, None)
        if low is None or high is None or attack.norm != "linf":
            continue
        remark = out_of_scale(attack.epsilon, float(np.max(high - low)))
        if remark is not None:
            warnings.warn(f"{type(attack).__name__}: {remark}", stacklevel=3)


def _sorted_out(
    method: Any, attack: Any, arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the arguments of the method and of the attack; refuses those of neither."""
    own = list(inspect.signature(compress).parameters)[:-1]
    cls = methods.class_of(method) if isinstance(method, str) else type(method)
    mine = parameters(cls) if issubclass(cls, methods.Method) else {}
    others = parameters(attacks.class_of(attack)) if isinstance(attack, str) else {}
    where = f"compress() with {cls.__name__}"
    check_arguments(where, arguments, [*mine, *others], own)
    for_attack = {k: v for k, v in arguments.items() if k not in mine}
    return {k: v for k, v in arguments.items() if k in mine}, for_attack


def strip_compression(model: Any) -> Any:
    """Returns the plain Keras model behind a compressed one.

    Layer names are the original ones, and all constraints hold exactly in the factors, even when
    training was interrupted; each kernel is composed from them.

    Args:
        model: a `CompressedModel`; a layer or list of layers that `compress` marked.

    Returns:
        A plain Keras model with the outputs of the compressed one; for a layer or list, the same,
        without its mark. A warning names layers through which nothing passes any more.

    Raises:
        ValueError: if the model is not a compressed one.
    """
    if isinstance(model, (list, tuple)):
        return type(model)(strip_compression(layer) for layer in model)
    if not isinstance(model, CompressedModel):
        if isinstance(model, keras.layers.Layer) and MARK in model.__dict__:
            del model.__dict__[MARK]
            return model
        raise ValueError(
            "strip_compression() takes a model returned by compress(). "
            f"Received an object of type {type(model)}."
        )
    plain = plain_copy(model)
    tell_what_is_dead(plain)
    return plain


@contextlib.contextmanager
def compression_scope() -> Iterator[None]:
    """Does nothing: every class is registered, so models load without a custom scope.

    Kept for those used to `tfmot.sparsity.keras.prune_scope`.
    """
    yield


def _is_weightless(layer: Any) -> bool:
    return isinstance(layer, keras.layers.Layer) and layer.built and not layer.variables


def _mark(layer: Any) -> Any:
    if not isinstance(layer, keras.layers.Layer):
        raise TypeError(f"Expected a Keras layer. Received an object of type {type(layer)}.")
    if layer.built and isinstance(find_slots(layer), str):
        raise ValueError(f"Layer '{layer.name}' cannot be compressed: {find_slots(layer)}.")
    layer.__dict__[MARK] = True
    return layer


def _comes_from(model: Any, package: str) -> bool:
    return any(cls.__module__.split(".")[0] == package for cls in type(model).__mro__)


def _from_tf_keras(model: Any) -> keras.Model:
    """Converts a tf_keras model through the file format that both can read."""
    if any(hasattr(layer, "pruning_vars") for layer in getattr(model, "layers", [])):
        from tensorflow_model_optimization.python.core.sparsity.keras.prune import strip_pruning

        model = strip_pruning(model)
    if not model.built:
        raise ValueError(f"The tf_keras model '{model.name}' is not built. Build it first.")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.h5")
        model.save(path, include_optimizer=False)
        try:
            return keras.saving.load_model(path, compile=False)
        except Exception as error:
            raise ValueError(
                f"The tf_keras model '{model.name}' cannot be read by Keras 3. Rebuild it with "
                "`import keras`, set its weights, and pass that model."
            ) from error
