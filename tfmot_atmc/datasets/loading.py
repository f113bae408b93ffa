# SPDX-License-Identifier: Apache-2.0
"""Image classification data as arrays, and batches that a resumed training sees again.

Example:

>>> from tfmot_atmc import datasets
>>> digits = datasets.load("digits")
>>> digits.input_shape, digits.num_classes, len(digits.x_test)
((8, 8, 1), 10, 359)
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from tfmot_atmc.datasets import made_up
from tfmot_atmc.datasets.splits import Dataset, Split, chosen_fraction, split_off

__all__ = ["PADDING", "Dataset", "EpochBatches", "load"]

PADDING = 4
"""Pixels by which augmentation pads an image on each side before it crops."""

_FREQUENT = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn_cropped")
_DIGITS_TEST_FRACTION = 0.2


def load(
    name: str,
    *,
    validation_fraction: float = 0.02,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Dataset:
    """Loads a dataset into memory, mostly of images with classes.

    "digits" (1,797 images of 8x8 pixels) comes with scikit-learn; it has no test split of its own,
    so a fifth of each class is set aside, the same whatever the seed. Any other name is looked up
    in tensorflow-datasets: prepared data is read without a network, other data is downloaded. The
    names of `made_up` are for tests and demonstrations in the shapes of MLPerf Tiny.

    Args:
        name: "digits", one of `made_up.NAMES`, or a tensorflow-datasets name, such as "mnist" or
            "cifar10".
        validation_fraction: part of the training split held out for validation, in [0, 1); drawn
            from every class alike.
        seed: seed of that draw.
        data_dir: folder of tensorflow-datasets; by default the environment's `TFDS_DATA_DIR`, or
            the one in the home folder.
        limit: at most so many examples in each of the three splits, the first ones.

    Returns:
        The data.

    Raises:
        ValueError: if the name is unknown, names something else than images of one size with
            labels, or another argument is out of range.
        ImportError: if tensorflow-datasets is needed and not installed.
        RuntimeError: if the data is not prepared and cannot be downloaded.
    """
    if not 0 <= validation_fraction < 1:
        raise ValueError(
            f"`validation_fraction` must be in [0, 1). Received: {validation_fraction}"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be a positive integer or None. Received: {limit}")
    bounds: tuple[Any, Any] = (0.0, 1.0)
    if name == "digits":
        train, test, num_classes = _load_digits()
    elif name in made_up.NAMES:
        train, test, num_classes = made_up.make(name)
        bounds = bounds if num_classes else (None, None)
    else:
        train, test, num_classes = _load_tfds(name, data_dir)
    balanced = train[1] if num_classes else np.zeros(len(train[1]), np.int64)
    rest, held_out = chosen_fraction(balanced, validation_fraction, seed)
    (x_train, y_train), (x_validation, y_validation), (x_test, y_test) = (
        (_to_unit(inputs[chosen]), targets[chosen].astype("int64" if num_classes else "float32"))
        for (inputs, targets), chosen in (
            (train, rest[:limit]),
            (train, held_out[:limit]),
            (test, slice(limit)),
        )
    )
    splits = (x_train, y_train, x_validation, y_validation, x_test, y_test)
    return Dataset(*splits, num_classes, name, bounds=bounds)


def _to_unit(images: np.ndarray) -> np.ndarray:
    """Float32 images in [0, 1]; integers are divided by the largest of their type."""
    if np.issubdtype(images.dtype, np.integer):
        return images.astype("float32") / np.float32(np.iinfo(images.dtype).max)
    return images.astype("float32")


def _load_digits() -> tuple[Split, Split, int]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images[..., None] / 16.0, bunch.target
    rest, test = split_off((images, labels), _DIGITS_TEST_FRACTION, 0)
    return rest, test, 10


def _load_tfds(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[Split, Split, int]:
    builder = _builder(name, data_dir)
    features = builder.info.features
    if features is None or builder.info.supervised_keys != ("image", "label"):
        raise ValueError(f"{name!r} is not an image classification dataset of tensorflow-datasets.")
    if None in features["image"].shape:
        raise ValueError(
            f"The images of {name!r} differ in size ({features['image'].shape}); `load` takes data "
            "whose images all have one size. Resize them first and pass the arrays directly."
        )
    _prepare(builder, name)
    import tensorflow_datasets as tfds

    train, test = (
        tfds.as_numpy(builder.as_dataset(split=split, as_supervised=True, batch_size=-1))
        for split in ("train", "test")
    )
    return train, test, features["label"].num_classes


def _builder(name: str, data_dir: str | os.PathLike[str] | None) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"Loading {name!r} needs tensorflow-datasets: pip install "
            '"tfmot-atmc[datasets]". Only "digits" does without.'
        ) from error
    try:
        return tfds.builder(name, data_dir=None if data_dir is None else os.fspath(data_dir))
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name, ["digits", *known], n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(
            f"Unknown dataset {name!r}.{hint} Known are {', '.join(_FREQUENT)} and the other image "
            "classification datasets of tensorflow-datasets."
        ) from error


def _prepare(builder: Any, name: str) -> None:
    """Downloads the data unless it is prepared already, which needs no network."""
    if builder.info.splits:
        return
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise RuntimeError(
            f"{name!r} is not prepared in {builder.data_dir} and downloading it failed "
            f"({type(error).__name__}: {error}). Where there is no network, prepare it elsewhere "
            "with tensorflow-datasets, copy the folder, and name it by TFDS_DATA_DIR or `data_dir`."
        ) from error


class EpochBatches(keras.utils.PyDataset):
    """Shuffled batches that depend on the seed and the epoch's number alone.

    A training that is interrupted and resumed at epoch `e` therefore sees the batches, order and
    augmentation that it would have seen without the interruption. The order is this object's own:
    whether `fit` is told to shuffle makes no difference. Leave `steps_per_epoch` of `fit` unset.

    Args:
        x: images, `[examples, height, width, channels]`; or any array, without augmentation.
        y: labels, one for each example.
        batch_size: examples in a batch.
        seed: non-negative integer.
        epoch: called at the start of every epoch for its number, such as
            `lambda: int(optimizer.iterations) // steps`; `None` counts the epochs from 0.
        augment: "crop_flip" pads by four zero pixels, crops at random and mirrors half the images
            (CIFAR); "reflect_crop" pads by reflection and crops (SVHN); `None` leaves them alone.
        drop_remainder: whether a last batch that is not full is left out.

    Raises:
        ValueError: if the arguments do not fit each other.

    Example:

    >>> import numpy as np
    >>> batches = EpochBatches(np.arange(5.0), np.arange(5), batch_size=2, seed=0)
    >>> [len(labels) for _, labels in batches]
    [2, 2, 1]
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
        augment: str | None = None,
        drop_remainder: bool = False,
    ):
        super().__init__()
        if len(x) != len(y):
            raise ValueError(
                f"`x` and `y` must have the same length. Received: {len(x)} and {len(y)}"
            )
        if batch_size < 1 or (drop_remainder and batch_size > len(x)):
            raise ValueError(
                "`batch_size` must be positive, and no more than the number of examples "
                f"({len(x)}) where `drop_remainder` is set. Received: {batch_size}"
            )
        if augment not in (None, "crop_flip", "reflect_crop"):
            raise ValueError(
                f'`augment` must be None, "crop_flip" or "reflect_crop". Received: {augment!r}'
            )
        if augment is not None and np.ndim(x) != 4:
            raise ValueError(
                "Augmentation needs images [examples, height, width, channels]. "
                f"Received an `x` of shape {np.shape(x)}"
            )
        self.x, self.y = x, y
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.drop_remainder = drop_remainder
        self._epoch = epoch
        self._epochs_seen = 0
        self._positions: dict[int, int] | None = None
        self._number = -1
        self._order = np.arange(len(x))

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        count = len(self.x) / self.batch_size
        return math.floor(count) if self.drop_remainder else math.ceil(count)

    def on_epoch_begin(self) -> None:
        """Asks for the epoch's number and draws its order."""
        self._start_epoch()
        self._positions = {}

    def on_epoch_end(self) -> None:
        """Ends an epoch that `on_epoch_begin` began."""
        if self._positions is not None:
            self._epochs_seen += 1
        self._positions = None

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns a batch of the epoch that runs, or of the next one between epochs.

        Args:
            index: number of the batch. Within `fit`, the first number asked for is the first
                batch, whatever it is, and so on, which undoes `fit`'s own shuffling.

        Returns:
            Images and labels.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)}")
        if self._positions is None:
            self._start_epoch()
        else:
            index = self._positions.setdefault(index, len(self._positions))
        chosen = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        images = self.x[chosen]
        if self.augment is not None:
            images = _augment(images, self.augment, self._generator(1, index))
        return images, self.y[chosen]

    def _start_epoch(self) -> None:
        number = self._epochs_seen if self._epoch is None else int(self._epoch())
        if number != self._number:
            self._number = number
            self._order = self._generator(0).permutation(len(self.x))

    def _generator(self, stream: int, index: int = 0) -> np.random.Generator:
        return np.random.default_rng([stream, self.seed, self._number, index])


def _augment(images: np.ndarray, kind: str, generator: np.random.Generator) -> np.ndarray:
    """Random crops of images padded by four pixels, for "crop_flip" mirrored at random."""
    count, height, width = images.shape[:3]
    pad = (PADDING, PADDING)
    padding = ((0, 0), pad, pad, (0, 0))
    padded = np.pad(images, padding, mode="reflect" if kind == "reflect_crop" else "constant")
    top, left = generator.integers(0, 2 * PADDING + 1, (2, count, 1))
    rows, columns = top + np.arange(height), left + np.arange(width)
    if kind == "crop_flip":
        columns = np.where(generator.random((count, 1)) < 0.5, columns[:, ::-1], columns)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
