# SPDX-License-Identifier: Apache-2.0
"""A batch normalisation of logits."""

from __future__ import annotations

import keras

from tfmot_atmc.utils.cloning import copy_model

__all__ = ["add_last_batch_norm"]


def add_last_batch_norm(model: keras.Model, name: str = "last_batch_norm") -> keras.Model:
    """Returns a copy of a classifier whose logits are normalised over the batch.

    The normalisation has neither scale nor offset, and epsilon 1e-5. Softmax then sees logits of
    one scale, whatever that of the last layer's weights, which binary weights need.

    Args:
        model: a built model with one output of logits, of shape `(batch, ..., classes)`.
        name: name of the new layer.

    Returns:
        A model with the same inputs; the one given is left as it is.

    Raises:
        ValueError: if the model has not one output, or it is a probability, or normalised already.

    Source: Liu et al., "Robust Binary Models by Pruning Randomly-initialized Networks", NeurIPS
    2022, section 3.3.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> add_last_batch_norm(model).layers[-1].name
    'last_batch_norm'
    """
    outputs = getattr(model, "outputs", None)
    if not model.built or not outputs or len(outputs) != 1:
        raise ValueError(
            f"Model '{model.name}' must be built, functional or Sequential, and have one output of "
            "logits. In a model of a class of its own add the layer in call()."
        )
    last = model.layers[-1]
    if isinstance(last, keras.layers.BatchNormalization):
        raise ValueError(f"The logits of '{model.name}' are normalised already, by '{last.name}'.")
    activation = getattr(last, "activation", None)
    if isinstance(last, keras.layers.Softmax) or activation in (
        keras.activations.softmax,
        keras.activations.sigmoid,
    ):
        raise ValueError(
            f"'{model.name}' ends in probabilities, by '{last.name}'. Give a model of logits: a "
            "last layer without activation, and a loss with from_logits=True."
        )
    copy = copy_model(model)
    norm = keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, center=False, scale=False, name=name
    )
    inputs = copy.inputs[0] if len(copy.inputs) == 1 else copy.inputs
    return keras.Model(inputs, norm(copy.outputs[0]), name=model.name)
