# SPDX-License-Identifier: Apache-2.0
"""Data to train on and to test with: loaded by name, split, batched and augmented."""

from tfmot_atmc.datasets.arrays import load_npz, load_saved
from tfmot_atmc.datasets.augmentation import KeyedBatches
from tfmot_atmc.datasets.loading import PADDING, EpochBatches, load
from tfmot_atmc.datasets.own import load_folder, load_own
from tfmot_atmc.datasets.splits import Dataset

__all__ = [
    "PADDING",
    "Dataset",
    "EpochBatches",
    "KeyedBatches",
    "load",
    "load_folder",
    "load_npz",
    "load_own",
    "load_saved",
]


def __dir__() -> list[str]:
    return __all__
