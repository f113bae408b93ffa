# SPDX-License-Identifier: Apache-2.0
"""The networks of the papers and of MLPerf Tiny, and some small ones; they return logits.

Every builder takes images of floats in [0, 1]; a normalisation, where one is wanted, is a layer of
the model, so that an attack's epsilon means the same for every network.

Example:

>>> from tfmot_atmc import models
>>> model = models.get("lenet", seed=0)
>>> models.count_kernel_weights(model)
430500
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tfmot_atmc.models.common import FanInUniform, SubsampleShortcut
from tfmot_atmc.models.counting import count_kernel_weights, count_macs
from tfmot_atmc.models.families import widest
from tfmot_atmc.models.lenet import lenet, small_cnn
from tfmot_atmc.models.mnist_cnn import compact_cnn, mnist_cnn
from tfmot_atmc.models.normalising import add_last_batch_norm
from tfmot_atmc.models.resnet import (
    cifar_resnet,
    resnet,
    resnet18,
    resnet20,
    resnet34,
    resnet50,
    resnet56,
    resnet101,
)
from tfmot_atmc.models.tiny import autoencoder, ds_cnn, mobilenet_v1, resnet8
from tfmot_atmc.models.wide_resnet import wide_resnet, wide_resnet_16_8

__all__ = [
    "FanInUniform",
    "SubsampleShortcut",
    "add_last_batch_norm",
    "autoencoder",
    "builder",
    "cifar_resnet",
    "compact_cnn",
    "count_kernel_weights",
    "count_macs",
    "ds_cnn",
    "get",
    "lenet",
    "mnist_cnn",
    "mobilenet_v1",
    "names",
    "resnet",
    "resnet101",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
    "resnet8",
    "small_cnn",
    "wide_resnet",
    "wide_resnet_16_8",
    "widest",
]

_BUILDERS: dict[str, Callable[..., keras.Model]] = {
    "autoencoder": autoencoder,
    "compact_cnn": compact_cnn,
    "ds_cnn": ds_cnn,
    "lenet": lenet,
    "mnist_cnn": mnist_cnn,
    "mobilenet_v1": mobilenet_v1,
    "resnet101": resnet101,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet56": resnet56,
    "resnet8": resnet8,
    "small_cnn": small_cnn,
    "wide_resnet_16_8": wide_resnet_16_8,
}


def names() -> list[str]:
    """Returns the names that `get` knows, sorted.

    Example:

    >>> "lenet" in names()
    True
    """
    return sorted(_BUILDERS)


def builder(name: str) -> Callable[..., keras.Model]:
    """Returns the builder of a network, such as `lenet`.

    Args:
        name: one of `names()`.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in _BUILDERS:
        raise ValueError(f"Unknown model {name!r}. Known models: {', '.join(names())}.")
    return _BUILDERS[name]


def get(name: str, **kwargs: Any) -> keras.Model:
    """Builds a network by name.

    Args:
        name: one of `names()`.
        **kwargs: passed to the builder, such as `input_shape`, `num_classes` or `seed`.

    Returns:
        The model, not compiled, returning logits unless `classifier_activation` says otherwise.

    Raises:
        ValueError: if the name is unknown.
    """
    return builder(name)(**kwargs)


def __dir__() -> list[str]:
    return __all__
