# SPDX-License-Identifier: Apache-2.0
"""Own data: a folder of images, an .npz file, a directory that tf.data saved.

Example:

>>> data = load_own("photos", image_size=(96, 96))  # doctest: +SKIP
>>> data.class_names  # doctest: +SKIP
('person', 'street')
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.datasets.arrays import load_npz, load_saved
from tfmot_atmc.datasets.checked import Bounds, checked_dataset
from tfmot_atmc.datasets.splits import Dataset, Split

__all__ = ["load_folder", "load_own"]

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_TOLD_SIZES = 3


def load_own(
    path: str | os.PathLike[str],
    *,
    bounds: Bounds | Mapping[str, Bounds] | None = None,
    image_size: tuple[int, int] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Loads data of one's own: which kind it is, its name and content tell.

    Args:
        path: a folder with one folder of images a class (`load_folder`), an .npz file (`load_npz`)
            or a directory written by `tf.data.Dataset.save` (`load_saved`).
        bounds: lowest and highest value of an input, in the units that the model takes: numbers,
            one for each feature, or of an .npz file a pair for each column that is named.
        image_size: height and width to which images of a folder are brought.
        validation_fraction: part of the training data held out, where there is no such split.
        seed: seed of the draws.
        limit: at most so many examples in each split.

    Returns:
        The data.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if what is there is none of these, or does not fit together.
    """
    where = Path(path)
    more: dict[str, Any] = {
        "bounds": bounds,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "limit": limit,
    }
    if not where.exists():
        raise FileNotFoundError(
            f"There is no data at {str(where)!r}. Give a folder of images with one folder a class, "
            "an .npz file with x and y, or a directory written by tf.data.Dataset.save."
        )
    if where.is_dir() and not (where / "dataset_spec.pb").exists():
        return load_folder(where, image_size=image_size, **more)
    if image_size is not None:
        raise ValueError(f"`image_size` is for a folder of images, and {str(where)!r} is none.")
    if where.is_dir():
        return load_saved(where, **more)
    if where.suffix != ".npz":
        raise ValueError(
            f"{str(where)!r} is neither a folder nor an .npz file; save arrays with "
            "numpy.savez(path, x=x, y=y)."
        )
    return load_npz(where, **more)


def load_folder(
    path: str | os.PathLike[str],
    *,
    bounds: Bounds | None = None,
    image_size: tuple[int, int] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Loads a folder that has one folder of images (PNG, JPEG, BMP, GIF) for each class.

    The classes are the names of the folders, sorted. Folders `train`, `validation` (or `val`) and
    `test` above them are splits; without them a fifth of each class is set aside for tests.

    Args:
        path: the folder.
        bounds: what black and white are, by default (0, 1).
        image_size: height and width to which all images are brought; None: as they are, which must
            be the same for all.
        validation_fraction: part of the training data held out, where there is no such split.
        seed: seed of the draws.
        limit: at most so many examples in each split.

    Returns:
        The data; images float32 in `bounds`, of one channel where all of them are grey.

    Raises:
        ValueError: if there are no images, one class, images of several sizes and no `image_size`,
            a file that is no image, or another class in another split.
    """
    root = Path(path)
    splits = {
        _SPLITS[p.name]: p for p in sorted(root.iterdir()) if p.is_dir() and p.name in _SPLITS
    }
    if not {"train"} <= set(splits):
        splits = {"train": root}
    names: tuple[str, ...] = ()
    found: dict[str, Split] = {}
    for split, folder in splits.items():
        classes, files, labels = _files(folder)
        if names and classes != names:
            raise ValueError(
                f"The splits of {str(root)!r} have different classes: {', '.join(names)} and "
                f"{', '.join(classes)} in {folder.name!r}. Give each the same folders."
            )
        names = classes
        found[split] = _decode(files, image_size), labels
    grey = all((images[..., :1] == images).all() for images, _ in found.values())
    if isinstance(bounds, Mapping):
        raise ValueError(
            f"{str(root)!r} holds images, whose features have no names; give `bounds` as two "
            "numbers, such as (0, 255)."
        )
    low, high = (np.asarray(end, np.float32) for end in bounds or (0.0, 1.0))

    def scaled(images: np.ndarray) -> np.ndarray:
        images = images[..., :1] if grey else images
        return (low + images.astype("float32") / 255.0 * (high - low)).astype("float32")

    parts = {split: (scaled(images), labels) for split, (images, labels) in found.items()}
    bounds = bounds or (0.0, 1.0)
    return checked_dataset(root, parts, bounds, names, validation_fraction, seed, limit)


def _files(folder: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """Classes, images and labels of a folder."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    images = [[f for f in sorted(c.rglob("*")) if f.suffix.lower() in _ENDINGS] for c in classes]
    kept = [(c.name, files) for c, files in zip(classes, images, strict=True) if files]
    if not kept:
        raise ValueError(
            f"{str(folder)!r} holds no images ({', '.join(_ENDINGS)}) in folders; make one folder "
            "for each class and put its images there."
        )
    if len(kept) == 1:
        raise ValueError(
            f"{str(folder)!r} holds images of one class only, {kept[0][0]!r}; a classifier needs "
            "two: make a folder for the other, such as 'background'."
        )
    labels = np.concatenate([np.full(len(files), i) for i, (_, files) in enumerate(kept)])
    return tuple(name for name, _ in kept), [f for _, files in kept for f in files], labels


def _decode(files: Sequence[Path], size: tuple[int, int] | None) -> np.ndarray:
    """Images uint8 `[examples, height, width, 3]`."""
    images: list[np.ndarray] = []
    sizes: dict[tuple[int, ...], str] = {}
    for file in files:
        try:
            image = tf.io.decode_image(file.read_bytes(), channels=3, expand_animations=False)
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(
                f"{str(file)!r} is not an image that can be read; mend or remove it."
            ) from error
        if size is not None:
            image = tf.image.resize(tf.cast(image, tf.float32), size, antialias=True)
            image = tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)
        images.append(image.numpy())
        sizes.setdefault(tuple(image.shape[:2]), file.name)
    if len(sizes) > 1:
        told = [f"{h}x{w} ({name})" for (h, w), name in list(sizes.items())[:_TOLD_SIZES]]
        raise ValueError(
            f"The images have several sizes: {', '.join(told)}{', ...' * (len(sizes) > len(told))}."
            " Give image_size=(height, width), or --image_size HEIGHT,WIDTH, to bring them to one."
        )
    return np.stack(images)
