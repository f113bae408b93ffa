# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation as it is deployed: statistics of the weights kept, not of older ones.

While a network is trained, its moving averages follow the batches' statistics with a delay, and the
projections move the weights once more after each of them. What is deployed then normalises by the
statistics of a network that is no more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.utils.keras_internals import flat_layers, layer_state, random_states

__all__ = ["batches_of", "losses_part", "normalisations", "reestimate_batch_norm"]

_BATCHES = 40
_BATCH_SIZE = 64
_COMPARED = 3
# Inference may be so much worse than training, and by so much of the first loss, before it is told.
_WORSE = 1.5
_PART_OF_FIRST = 0.05


def reestimate_batch_norm(
    model: keras.Model,
    data: Any,
    *,
    batches: int = _BATCHES,
    batch_size: int = _BATCH_SIZE,
    forward: Callable[..., Any] | None = None,
) -> int:
    """Sets the moving statistics of batch normalisation to averages over batches, in place.

    Each layer gets the mean of the batches' means and of their variances, with the weights as they
    are, the other layers in training mode. All other state of the model stays as it was.

    Args:
        model: a built Keras model.
        data: inputs like those of training, prepared alike: an array or a nest of arrays, a pair
            (inputs, targets), a `tf.data.Dataset` or a `keras.utils.PyDataset` of batches.
        batches: number of batches at most.
        batch_size: examples in a batch of arrays.
        forward: called with each batch in place of the model with its inputs.

    Returns:
        The number of layers whose statistics were set; frozen layers keep theirs.

    Raises:
        ValueError: if the data holds no batch, or can be read only once.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    >>> reestimate_batch_norm(model, np.full((64, 2), 5.0, "float32"))
    1
    >>> model.layers[0].moving_mean.numpy().tolist()
    [5.0, 5.0]
    """
    layers = normalisations(model)
    if not layers:
        return 0
    chosen = batches_of(data, batches, batch_size)
    if not chosen:
        raise ValueError(
            f"Statistics cannot be taken from data of type {type(data).__name__} that is empty or "
            "can be read only once. Pass arrays, a tf.data.Dataset or a PyDataset."
        )
    run = forward or (lambda batch: model(_inputs(batch), training=True))
    own = {id(v) for layer in layers for v in (layer.moving_mean, layer.moving_variance)}
    seeds = [state for layer in flat_layers(model) for state in random_states(layer)]
    others = [(v, value) for v, value in layer_state(model) if id(v) not in own]
    others += [(seed, tf.identity(seed.value)) for seed in seeds]
    sums = [[np.zeros(v.shape, np.float64) for v in _statistics(layer)] for layer in layers]
    with _of_one_batch(layers):
        for batch in chosen:
            run(batch)
            for layer, totals in zip(layers, sums, strict=True):
                for total, variable in zip(totals, _statistics(layer), strict=True):
                    total += keras.ops.convert_to_numpy(variable)
    for layer, totals in zip(layers, sums, strict=True):
        for total, variable in zip(totals, _statistics(layer), strict=True):
            variable.assign((total / len(chosen)).astype("float32"))
    for variable, value in others:
        variable.assign(value)
    return len(layers)


def normalisations(model: keras.layers.Layer) -> list[keras.layers.BatchNormalization]:
    """Returns the layers of batch normalisation that follow their batches, in a fixed order."""
    found = [x for x in flat_layers(model) if isinstance(x, keras.layers.BatchNormalization)]
    return [layer for layer in found if layer.built and layer.trainable]


def batches_of(data: Any, count: int, batch_size: int = _BATCH_SIZE) -> list[Any]:
    """Returns some batches of what may be given to `fit`: tuples of inputs and what follows them.

    Args:
        data: arrays, a `tf.data.Dataset` or a `PyDataset`, see `reestimate_batch_norm`.
        count: number of batches at most.
        batch_size: examples in a batch of arrays, which are drawn with a fixed seed.

    Returns:
        A list; empty where the data can be read only once, as a generator.
    """
    if isinstance(data, tf.data.Dataset):
        return [_as_tuple(batch) for batch in data.take(count)]
    if isinstance(data, keras.utils.PyDataset):
        number = data.num_batches
        return [_as_tuple(data[i]) for i in range(min(count, number or count))]
    pair = _as_tuple(data)
    arrays = [part for part in pair if part is not None]
    leaves = tf.nest.flatten(arrays)
    if not leaves or not all(hasattr(leaf, "shape") and len(leaf.shape) for leaf in leaves):
        return []
    size = int(leaves[0].shape[0])
    order = np.random.default_rng(0).permutation(size)[: count * batch_size]
    chunks = [np.sort(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]
    chunks = chunks[:1] + [chunk for chunk in chunks[1:] if len(chunk) == batch_size]
    return [
        tuple(
            None if part is None else tf.nest.map_structure(lambda a, c=c: _rows(a, c), part)
            for part in pair
        )
        for c in chunks
        if len(c)
    ]


def losses_part(
    losses: Callable[[Any, bool], Any], batches: Sequence[Any], first: float | None
) -> str | None:
    """Tells when a model is much worse in inference than in training mode.

    Args:
        losses: returns the loss of a batch, given whether in training mode; changes no state.
        batches: some batches.
        first: loss at the start of training; None where it is not known.
    """
    few = batches[:_COMPARED]
    if not few:
        return None
    training, inference = (float(np.mean([losses(b, mode) for b in few])) for mode in (True, False))
    scale = abs(training if first is None else first)
    if not inference > _WORSE * training or inference - training <= _PART_OF_FIRST * scale:
        return None
    return (
        f"In inference the loss is {inference:.4g}, in training mode {training:.4g} on the same "
        "inputs: what is deployed is worse than training says. Batch normalisation's statistics "
        "do not fit; lower its `momentum`, use larger batches, or call "
        "`tfmot_atmc.reestimate_batch_norm(model, data)`."
    )


def _statistics(layer: Any) -> tuple[Any, Any]:
    return layer.moving_mean, layer.moving_variance


@contextlib.contextmanager
def _of_one_batch(layers: Sequence[Any]) -> Iterator[None]:
    """Lets the layers take over a batch's statistics as they are."""
    kept = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, kept, strict=True):
            layer.momentum = momentum


def _as_tuple(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def _inputs(batch: tuple[Any, ...]) -> Any:
    return batch[0]


def _rows(array: Any, rows: np.ndarray) -> Any:
    return tf.gather(array, rows) if tf.is_tensor(array) else np.asarray(array)[rows]
