# SPDX-License-Identifier: Apache-2.0
"""Batches that tell with each image which one it is and how it was cropped and mirrored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfmot_atmc.attacks import ATTA, Keyed
from tfmot_atmc.datasets.loading import EpochBatches

__all__ = ["KeyedBatches"]


def __dir__() -> list[str]:
    return __all__


class KeyedBatches(EpochBatches):
    """Shuffled, augmented batches for training with `ATTA`.

    Each batch is `(Keyed(image, index, window), labels)`. Like those of `EpochBatches`, order and
    augmentation depend on the seed and the epoch's number alone, so that a run resumed at an epoch
    sees what it would have seen. How far images are padded is the attack's `padding`; without
    padding and `flip` they are as given.

    Args:
        x: images, `[examples, height, width, channels]`, within the attack's bounds.
        y: labels, one for each example.
        attack: the `ATTA` that will be trained with.
        batch_size: examples in a batch.
        flip: mirror half of the images, left to right.
        fill: value of the padding; None pads by reflection.
        seed: non-negative integer.
        epoch: as of `EpochBatches`.
        drop_remainder: whether a last batch that is not full is left out.

    Raises:
        ValueError: the attack is for other data, or arguments do not fit each other.
        TypeError: `attack` is no `ATTA`.

    Example:

    >>> import numpy as np
    >>> from tfmot_atmc.attacks import ATTA
    >>> attack = ATTA(epsilon=0.1, num_examples=3, image_shape=(2, 2, 1))
    >>> batches = KeyedBatches(np.zeros((3, 2, 2, 1)), np.arange(3), attack=attack, batch_size=2)
    >>> (image, index, window), labels = batches[0]
    >>> image.shape, bool((index == labels).all()), window.tolist()
    ((2, 2, 2, 1), True, [[0, 0, 0], [0, 0, 0]])
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        *,
        attack: ATTA,
        batch_size: int,
        flip: bool = False,
        fill: float | None = 0.0,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
        drop_remainder: bool = False,
    ):
        if not isinstance(attack, ATTA):
            raise TypeError(f"`attack` must be an ATTA. Received {attack!r}.")
        if attack.num_examples is None or attack.image_shape is None:
            raise ValueError(
                "The attack has no data yet. Pass `attack.sized(len(x), x.shape[1:])` here and to "
                "`compress`."
            )
        if np.shape(x) != (attack.num_examples, *attack.image_shape):
            raise ValueError(
                f"`x` has shape {np.shape(x)}, but the attack keeps perturbations of "
                f"{attack.num_examples} examples of shape {attack.image_shape}."
            )
        if flip and np.ndim(x) != 4:
            raise ValueError(f"`flip` needs images. Received an `x` of shape {np.shape(x)}.")
        indices = np.arange(len(x), dtype=np.int32)
        super().__init__(
            indices,
            y,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            drop_remainder=drop_remainder,
        )
        self.images = x
        self.padding = attack.padding
        self.flip = flip
        self.fill = fill

    def __getitem__(self, index: int) -> Any:
        """Returns a batch of the epoch that runs; see `EpochBatches`.

        Args:
            index: number of the batch.

        Returns:
            `(Keyed(image, index, window), labels)`.
        """
        chosen, labels = super().__getitem__(index)
        # The first example names the batch within its epoch, wherever `fit` wanted it.
        generator = self._generator(1, int(chosen[0]))
        window = np.zeros((len(chosen), 3), np.int32)
        window[:, :2] = generator.integers(0, 2 * self.padding + 1, (len(chosen), 2))
        window[:, 2] = self.flip & (generator.random(len(chosen)) < 0.5)
        return Keyed(self._cropped(self.images[chosen], window), chosen, window), labels

    def _cropped(self, images: np.ndarray, window: np.ndarray) -> np.ndarray:
        if self.padding:
            (height, width), pad = images.shape[1:3], (self.padding, self.padding)
            around = ((0, 0), pad, pad, (0, 0))
            if self.fill is None:
                padded = np.pad(images, around, mode="reflect")
            else:
                padded = np.pad(images, around, constant_values=self.fill)
            rows, columns = window[:, :1] + np.arange(height), window[:, 1:2] + np.arange(width)
            batch = np.arange(len(images))[:, None, None]
            images = padded[batch, rows[:, :, None], columns[:, None, :]]
        if self.flip:
            mirrored = window[:, 2].reshape(-1, 1, 1, 1) != 0
            images = np.where(mirrored, images[:, :, ::-1], images)
        return images
