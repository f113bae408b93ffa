# SPDX-License-Identifier: Apache-2.0
"""Small trained models that come with the package: loaded by name, each with its card.

Nothing is fetched from anywhere. A file that is not the one its card describes is refused.

Example:

>>> from tfmot_atmc import references
>>> "lenet-mnist-0.01" in references.names()
True
>>> references.load("lenet-mnist-0.01").output_shape
(None, 10)
"""

from tfmot_atmc.models.references.cards import render_card, render_table
from tfmot_atmc.models.references.loading import card, keras_path, load, names, tflite_path

__all__ = [
    "card",
    "keras_path",
    "load",
    "names",
    "render_card",
    "render_table",
    "tflite_path",
]


def __dir__() -> list[str]:
    return __all__
