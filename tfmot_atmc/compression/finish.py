# SPDX-License-Identifier: Apache-2.0
"""What `fit` does with the final weights: statistics that fit them, and a look at what is left."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmot_atmc import attacks
from tfmot_atmc.compression.attacked import unpacked
from tfmot_atmc.compression.batch_norm import (
    batches_of,
    losses_part,
    normalisations,
    reestimate_batch_norm,
)
from tfmot_atmc.compression.report import empty_kernels
from tfmot_atmc.compression.wrapping import composed_kernels
from tfmot_atmc.slimming.dead import constant_output, dead_message
from tfmot_atmc.utils.keras_internals import layer_state

__all__ = [
    "empty_kernels",
    "refresh_statistics",
    "remembered_data",
    "tell_what_died",
    "tell_losses",
    "tell_remarks",
]

_DATA = "_data_of_fit"
_FORWARD = "_forward_for_statistics"
_FEWEST, _MOST = 4, 20


@contextlib.contextmanager
def remembered_data(model: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[None]:
    """Keeps what `fit` was given at hand, for the callbacks, while it runs.

    Args:
        model: a `CompressedModel`.
        args: positional arguments of `fit`.
        kwargs: its other arguments.
    """
    given = dict(zip(("x", "y", "batch_size"), args, strict=False)) | kwargs
    data = given.get("x")
    if not isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        data = (data, given.get("y"), given.get("sample_weight"))
    model.__dict__[_DATA] = data, given.get("batch_size") or 32
    try:
        yield
    finally:
        del model.__dict__[_DATA]


def refresh_statistics(model: Any, steps: int | None) -> bool:
    """Re-estimates batch normalisation on some batches of `fit`, attacked as in training.

    Under a strategy of several replicas it is left to them, and nothing is done.

    Args:
        model: a `CompressedModel` within `fit`.
        steps: steps of an epoch; None where that is not known.

    Returns:
        Whether statistics were set.
    """
    data, size = model.__dict__.get(_DATA, (None, 0))
    if (
        data is None
        or not normalisations(model)
        or model.distribute_strategy.num_replicas_in_sync > 1
    ):
        return False
    count = min(_MOST, max(_FEWEST, (steps or 8 * _MOST) // 8))
    chosen = batches_of(data, count, size)
    if not chosen:
        return False
    forward = model.__dict__.get(_FORWARD)
    if forward is None:
        forward = model.__dict__[_FORWARD] = _training_forward(model)
    reestimate_batch_norm(model, _Batches(chosen), batches=count, forward=forward)
    return True


class _Batches(keras.utils.PyDataset):
    """Batches that are there already."""

    def __init__(self, batches: Sequence[Any]):
        super().__init__()
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        return self._batches[index]


def _training_forward(model: Any) -> Callable[[Any], None]:
    """The forward passes of a train step, of the kernels as they would be deployed now."""
    attack = model.attack
    if isinstance(attack, attacks.ATTA):  # must not move what it carries
        attack = attack.for_validation()
    config = None if attack is None else attack.get_config()
    if config is not None and "unroll" in config:  # traced once, whatever its steps
        attack = type(attack).from_config(config | {"unroll": False})

    def run(x: Any, y: Any, sample_weight: Any) -> None:
        x_adversarial = x

        def loss_of(targets: Any, outputs: Any) -> Any:
            return model.compute_loss(x, targets, outputs, sample_weight, training=True)

        with composed_kernels(model.kernels, model._deployed()):
            if attack is not None:
                x_adversarial = model._attacked(attack, x, y, salt=2)
            model.objective(
                lambda inputs: model.model(inputs, training=True), loss_of, x, x_adversarial, y
            )

    traced = tf.function(run, autograph=False, reduce_retracing=True)

    def forward(batch: Any) -> None:
        x, y, sample_weight = unpacked(model, tuple(batch))
        x = x if model.attack is None else model.attack.inputs(x)
        traced(*tf.nest.map_structure(tf.convert_to_tensor, (x, y)), sample_weight)

    return forward


def tell_losses(model: Any, first: float | None) -> None:
    """Warns when inference is much worse than training mode on batches of `fit`.

    Args:
        model: a `CompressedModel` within `fit`.
        first: loss of the first epoch.
    """
    data, size = model.__dict__.get(_DATA, (None, 0))
    if data is None or not normalisations(model):
        return

    def loss(batch: Any, training: bool) -> float:
        x, y, sample_weight = unpacked(model, tuple(batch))
        x = x if model.attack is None else model.attack.inputs(x)
        before = layer_state(model.model)
        with composed_kernels(model.kernels):
            outputs = model.model(x, training=training)
            value = model.compute_loss(x, y, outputs, sample_weight, training=training)
        for variable, kept in before:
            variable.assign(kept)
        return float(value)

    said = losses_part(loss, batches_of(data, 3, size), first)
    if said is not None:
        warnings.warn(said, stacklevel=3)


def tell_remarks(model: Any) -> None:
    """Warns of what constraints have to say at the end of training.

    Args:
        model: a `CompressedModel`.
    """
    for constraint in model.constraints:
        said = constraint.remark()
        if said is not None:
            warnings.warn(f"{type(constraint).__name__}: {said}", stacklevel=3)


def tell_what_died(model: Any) -> None:
    """Warns, with names, when layers hold nothing or the output no longer depends on the input.

    Args:
        model: a `CompressedModel` whose constraints hold, within `fit`.
    """
    data, size = model.__dict__.get(_DATA, (None, 0))
    constant = False
    for batch in batches_of(data, 1, max(size, 16)) if data is not None else []:
        x = batch[0] if model.attack is None else model.attack.inputs(batch[0])
        with composed_kernels(model.kernels):
            outputs = model.model(x, training=False)
        constant = constant_output(
            [keras.ops.convert_to_numpy(o) for o in tf.nest.flatten(outputs)]
        )
    said = dead_message(empty_kernels(model.kernels), constant)
    if said is not None:
        warnings.warn(said, stacklevel=3)
