# SPDX-License-Identifier: Apache-2.0
"""Own data: a folder of images, an .npz file, a directory that tf.data saved.

Example:

>>> data = load_own("photos", image_size=(96, 96))  # doctest: +SKIP
>>> data.class_names  # doctest: +SKIP
('person', 'street')
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.datasets.splits import Dataset, Split, split_off

__all__ = ["load_folder", "load_npz", "load_own", "load_saved"]

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_TEST_FRACTION = 0.2
_TOLD_SIZES = 3

Bounds = tuple[Any, Any]


def load_own(
    path: str | os.PathLike[str],
    *,
    bounds: Bounds | None = None,
    image_size: tuple[int, int] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Loads data of one's own: which kind it is, its name and content tell.

    Args:
        path: a folder with one folder of images a class (`load_folder`), an .npz file (`load_npz`)
            or a directory written by `tf.data.Dataset.save` (`load_saved`).
        bounds: lowest and highest value of an input, in the units that the model takes.
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


# --- folders of images ----------------------------------------------------------------------------


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
    low, high = (0.0, 1.0) if bounds is None else bounds

    def scaled(images: np.ndarray) -> np.ndarray:
        images = images[..., :1] if grey else images
        return (low + images.astype("float32") / 255.0 * (high - low)).astype("float32")

    parts = {split: (scaled(images), labels) for split, (images, labels) in found.items()}
    return _dataset(root, parts, (low, high), names, validation_fraction, seed, limit)


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


# --- arrays and saved datasets --------------------------------------------------------------------


def load_npz(
    path: str | os.PathLike[str],
    *,
    bounds: Bounds | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Loads arrays `x` and `y`, or `x_train`, `y_train`, `x_test`, ..., from an .npz file.

    `y` holds classes (whole numbers, `[examples]`), several yes or no answers (0 and 1,
    `[examples, answers]`) or numbers to predict. Without `y` the targets are the inputs, as for an
    autoencoder. An array `class_names` names the classes.

    Args:
        path: the file.
        bounds: lowest and highest value of an input, as numbers or as one for each feature; None:
            (0, 1) for bytes, which are then divided by 255, and for values in [0, 1], else no
            bounds.
        validation_fraction: part of the training data held out, where there is no such split.
        seed: seed of the draws.
        limit: at most so many examples in each split.

    Returns:
        The data.

    Raises:
        ValueError: if x is missing or y does not fit it.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    names = tuple(str(name) for name in arrays.pop("class_names", ()))
    arrays = {f"{k}_train" if k in ("x", "y") else k: v for k, v in arrays.items()}
    arrays = {
        k.replace("_val", "_validation") if k.endswith("_val") else k: v for k, v in arrays.items()
    }
    if "x_train" not in arrays:
        raise ValueError(
            f"{str(path)!r} has no array named x or x_train; it has "
            f"{', '.join(sorted(arrays)) or 'none'}. Save it with numpy.savez(path, x=x, y=y)."
        )
    parts: dict[str, Split] = {}
    for split in ("train", "validation", "test"):
        x, y = arrays.get(f"x_{split}"), arrays.get(f"y_{split}")
        if x is None:
            continue
        if y is None and "y_train" in arrays:
            raise ValueError(
                f"{str(path)!r} has x_{split} but no y_{split}; save both, or no y at all to train "
                "the inputs themselves."
            )
        parts[split] = x, x if y is None else y
    return _dataset(Path(path), *_in_units(parts, bounds), names, validation_fraction, seed, limit)


def load_saved(
    path: str | os.PathLike[str],
    *,
    bounds: Bounds | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Loads a directory written by `tf.data.Dataset.save`: pairs (x, y), or x; batched or not.

    Args:
        path: the directory.
        bounds: as for `load_npz`.
        validation_fraction: part of the data held out for validation.
        seed: seed of the draws.
        limit: at most so many examples in each split.

    Returns:
        The data; a fifth is set aside for tests.

    Raises:
        ValueError: if its elements are neither arrays nor pairs of arrays.
    """
    saved = tf.data.Dataset.load(os.fspath(path))
    spec = saved.element_spec
    leaves = spec if isinstance(spec, tuple) else (spec,)
    if len(leaves) > 2 or not all(isinstance(leaf, tf.TensorSpec) for leaf in leaves):
        raise ValueError(
            f"{str(path)!r} holds elements of the form {spec}; save pairs (x, y) of tensors."
        )
    elements = [e if isinstance(e, tuple) else (e,) for e in saved.as_numpy_iterator()]
    if not elements:
        raise ValueError(f"{str(path)!r} holds no examples.")
    join = np.concatenate if _is_batched(leaves) else np.stack
    columns = [join([np.asarray(e[i]) for e in elements]) for i in range(len(leaves))]
    parts = {"train": (columns[0], columns[-1])}
    return _dataset(Path(path), *_in_units(parts, bounds), (), validation_fraction, seed, limit)


def _is_batched(leaves: tuple[tf.TensorSpec, ...]) -> bool:
    """Whether elements are batches: their first dimension is open, or the same in x and y."""
    shapes = [leaf.shape.as_list() for leaf in leaves]
    if not shapes[0]:
        return False
    if shapes[0][0] is None or len(shapes) == 1:
        return shapes[0][0] is None
    return len(shapes[0]) > 1 and shapes[1][:1] == shapes[0][:1]


def _in_units(parts: dict[str, Split], bounds: Bounds | None) -> tuple[dict[str, Split], Bounds]:
    """The inputs as floats in the units of the model, and their bounds."""
    first = parts["train"][0]
    if first.dtype == np.uint8 and bounds is None:
        return {k: (x.astype("float32") / np.float32(255), y) for k, (x, y) in parts.items()}, (
            0.0,
            1.0,
        )
    parts = {
        k: (x.astype("float32"), y.astype("float32") if y is x else y)
        for k, (x, y) in parts.items()
    }
    lowest = min(float(x.min(initial=0.0)) for x, _ in parts.values())
    highest = max(float(x.max(initial=0.0)) for x, _ in parts.values())
    if not np.isfinite([lowest, highest]).all():
        raise ValueError("x holds values that are not finite; remove or fill them first.")
    if bounds is None:
        unit = lowest >= 0.0 and 0.0 < highest <= 1.0
        return parts, (0.0, 1.0) if unit else (None, None)
    for end, worst, sign in ((bounds[0], lowest, -1), (bounds[1], highest, 1)):
        if end is not None and np.ndim(end) == 0 and sign * (worst - end) > 1e-5 * max(1, abs(end)):
            raise ValueError(
                f"x holds values from {lowest:g} to {highest:g}, outside the bounds {bounds[0]:g} "
                f"to {bounds[1]:g}. Give bounds in the units of x, or scale x."
            )
    return parts, bounds


def _dataset(
    path: Path,
    parts: dict[str, Split],
    bounds: Bounds,
    names: tuple[str, ...],
    validation_fraction: float,
    seed: int,
    limit: int | None,
) -> Dataset:
    parts = {split: (x, _targets(path, x, y)) for split, (x, y) in parts.items()}
    y_train = parts["train"][1]
    count = 0
    if y_train.dtype.kind == "i":
        highest = max(int(y.max(initial=0)) for _, y in parts.values())
        count = len(names) or highest + 1
        _check_classes(path, parts, count, names)
    elif y_train.ndim == 2 and all(np.isin(y, (0, 1)).all() for _, y in parts.values()):
        count = y_train.shape[1]
    if names and len(names) != count:
        raise ValueError(f"{str(path)!r} names {len(names)} classes but has {count}.")
    if "test" not in parts:
        parts["train"], parts["test"] = split_off(parts["train"], _TEST_FRACTION, 0)
    if "validation" not in parts:
        rest = split_off(parts["train"], validation_fraction, seed)
        parts["train"], parts["validation"] = rest
    (xt, yt), (xv, yv), (xe, ye) = (
        tuple(array[:limit] for array in parts[split]) for split in ("train", "validation", "test")
    )
    return Dataset(xt, yt, xv, yv, xe, ye, count, str(path), names or None, bounds)


def _targets(path: Path, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Classes as int64, all other targets as float32."""
    if len(x) != len(y):
        raise ValueError(
            f"{str(path)!r} holds {len(x)} inputs and {len(y)} targets; give one for each."
        )
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 1 and (y.dtype.kind in "iub" or (y == np.rint(y)).all()):
        return y.astype("int64")
    return y.astype("float32")


def _check_classes(path: Path, parts: dict[str, Split], count: int, names: tuple[str, ...]) -> None:
    for split, (_, y) in parts.items():
        lowest, highest = int(y.min(initial=0)), int(y.max(initial=0))
        if lowest < 0 or highest >= count:
            raise ValueError(
                f"{str(path)!r} has labels from {lowest} to {highest} in {split!r}, but "
                f"{count} classes{' by its class_names' if names else ''}: labels must be "
                f"0 to {count - 1}."
            )
    present = np.unique(parts["train"][1])
    if len(present) < 2:
        raise ValueError(
            f"{str(path)!r} holds one class only, {present.tolist()}; a classifier needs two."
        )
