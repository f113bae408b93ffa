# SPDX-License-Identifier: Apache-2.0
"""What ranks the kernels of a trained network need, and what is left of it at lower ones.

    python benchmarks/kernel_ranks.py --models dense=dense.keras,sparse=polished-0.002.keras \
        --ranks 10,20,50,10/3,4,6,4 --out benchmarks/results/kernel_ranks

The first table has, for every kernel read as a matrix, and where it is cheaper so also read as
vertical times horizontal filters, its rank, how many singular values hold 90% of the sum of their
squares, and how many parameters so many components take. With `--ranks`, the first network
(sequential in its layers with kernels, on MNIST) is cut to these ranks without any training, in
three ways, and attacked: by the singular values of the weights, as ALR does; by those of separable
kernels; and layer by layer to the principal directions of the outputs on attacked training images,
the mean of what is cut away put into the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import app, flags
from common import load_plain, named_files, show

import tfmot_atmc as atmc
from tfmot_atmc.math import is_separable, kernel_matrix, matrix_kernel
from tfmot_atmc.recipes.pipeline import standard_attacks
from tfmot_atmc.utils.files import write_json

MODELS = flags.DEFINE_list("models", None, "name=file.keras, ...", required=True)
RANKS = flags.DEFINE_string("ranks", "", "Ranks of the kernels, with commas; several with '/'.")
EPSILON = flags.DEFINE_float("epsilon", 76 / 255, "Radius in input units.")
SEEN = flags.DEFINE_integer("training_examples", 2048, "Images for the principal directions.")
TEST = flags.DEFINE_integer("test_examples", 2000, "Test images that are attacked.")
OUT = flags.DEFINE_string("out", None, "Where to write results as JSON.")


def layers_of(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers with kernels, in order."""
    return [layer for layer in model.layers if getattr(layer, "kernel", None) is not None]


def matrix_of(layer: keras.layers.Layer, separable: bool = False) -> np.ndarray:
    kernel = keras.ops.convert_to_numpy(layer.kernel).astype(np.float64)
    return kernel_matrix(kernel, separable)


def needed(name: str, model: keras.Model) -> list[dict[str, Any]]:
    """The ranks of all kernels of a model."""
    rows = []
    for layer in layers_of(model):
        for separable in (False, True) if is_separable(layer.kernel.shape) else (False,):
            matrix = matrix_of(layer, separable)
            values = np.linalg.svd(matrix, compute_uv=False)
            held = np.cumsum(values**2) / np.sum(values**2)
            enough = int(np.searchsorted(held, 0.9)) + 1
            rows.append(
                {
                    "model": name,
                    "kernel": layer.name,
                    "read": "separable" if separable else "whole",
                    "rows": matrix.shape[0],
                    "columns": matrix.shape[1],
                    "nonzeros": int(np.count_nonzero(matrix)),
                    "rank": int(np.sum(values > 1e-5 * values[0])),
                    "for 90%": enough,
                    "parameters": enough * sum(matrix.shape),
                }
            )
    return rows


def by_singular_values(model: keras.Model, ranks: Sequence[int], separable: bool = False) -> None:
    """Cuts every kernel to its largest singular values, in place."""
    for layer, rank in zip(layers_of(model), ranks, strict=True):
        left, values, right = np.linalg.svd(matrix_of(layer, separable), full_matrices=False)
        cut = (left[:, :rank] * values[:rank]) @ right[:rank]
        layer.kernel.assign(matrix_kernel(cut, layer.kernel.shape, separable))


def by_outputs(model: keras.Model, ranks: Sequence[int], data: Any) -> None:
    """Cuts every kernel to the principal directions of what it gives, in place, layer by layer."""
    x, y = data.x_train[: SEEN.value], data.y_train[: SEEN.value]
    attack = atmc.attacks.PGD(epsilon=EPSILON.value, steps=10, seed=0)
    for layer, rank in zip(layers_of(model), ranks, strict=True):
        attacked = np.concatenate(
            [attack(model, x[i : i + 256], y[i : i + 256]) for i in range(0, len(x), 256)]
        )
        outputs = products(model, layer, attacked)
        mean = outputs.mean(axis=0)
        _, directions = np.linalg.eigh(np.cov(outputs.T))
        kept = directions[:, -rank:] @ directions[:, -rank:].T
        layer.kernel.assign((matrix_of(layer) @ kept).reshape(layer.kernel.shape))
        layer.bias.assign_add((mean - mean @ kept).astype(np.float32))


def products(model: keras.Model, layer: keras.layers.Layer, images: np.ndarray) -> np.ndarray:
    """What the kernel of a layer gives, without bias and activation: `(positions, outputs)`."""
    given = keras.Model(model.inputs, layer.input).predict(images, batch_size=256, verbose=0)
    found = []
    for part in np.array_split(given, max(1, len(given) // 256)):
        if len(layer.kernel.shape) == 2:
            result = keras.ops.matmul(part, layer.kernel)
        else:
            result = keras.ops.conv(part, layer.kernel, layer.strides, layer.padding)
        found.append(keras.ops.convert_to_numpy(result).reshape(-1, layer.kernel.shape[-1]))
    return np.concatenate(found).astype(np.float64)


def cut_and_attacked(name: str, path: str, lists: list[list[int]]) -> list[dict[str, Any]]:
    """Accuracy of a network and of what is left of it at lower ranks."""
    data, rows = atmc.datasets.load("mnist"), []
    test = (data.x_test[: TEST.value], data.y_test[: TEST.value])
    attack = {"PGD-16": standard_attacks(EPSILON.value)["PGD-16"]}
    plans: list[tuple[str, Any, Any]] = [("whole", None, None)]
    for ranks in lists:
        plans.append(("singular values", by_singular_values, (ranks,)))
        plans.append(("singular values, separable", by_singular_values, (ranks, True)))
        plans.append(("outputs", by_outputs, (ranks, data)))
    for way, cut, arguments in plans:
        model = load_plain(path)
        if cut is not None:
            cut(model, *arguments)
        report = atmc.evaluate_robustness(model, test, attacks=attack, checks=False, verbose=0)
        label = None if cut is None else ",".join(map(str, arguments[0]))
        accuracy = {"clean": report.clean_accuracy, "PGD-16": report.robust_accuracy}
        rows.append({"model": name, "ranks": label, "cut by": way, **accuracy})
    return rows


def main(_: list[str]) -> None:
    lists = [[int(rank) for rank in ranks.split(",")] for ranks in RANKS.value.split("/") if ranks]
    files = named_files(MODELS.value)
    kernels = [row for name, path in files.items() for row in needed(name, load_plain(path))]
    cut = cut_and_attacked(*next(iter(files.items())), lists) if lists else []
    show("Ranks of kernels", kernels)
    show(f"Cut without training, {TEST.value} test images", cut)
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
        write_json(
            Path(OUT.value) / "results.json",
            {"epsilon": EPSILON.value, "test_examples": TEST.value, "kernels": kernels, "cut": cut},
        )


if __name__ == "__main__":
    app.run(main)
