# SPDX-License-Identifier: Apache-2.0
"""What W = (U + I)V + C can save over W alone, in a trained network's weights.

    python benchmarks/factor_gain.py --model_file dense.keras --ratios 0.05,0.01,0.005,0.002,0.001

For each budget of k nonzeros over all kernels it compares two approximations of the weights: the k
largest entries, and V of the largest entries with the best entries of U found greedily, one a row
and round, at the best split of the budget. `saved` says how many nonzeros fewer the second needs
for the error of the first. C adds nothing here: an entry of it costs what one of V does.

    python benchmarks/factor_gain.py --model_file dense.keras --ratios 0.05,0.01 --train

then trains ATMC for an epoch from such factors, under a budget that falls from `--start`, and A-l0
by the same recipe from the same weights, on MNIST, and attacks both: whether what is saved in the
weights is worth anything after training. With `--epochs 0` both are attacked untrained.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from common import load_plain, show
from rich.console import Console
from rich.progress import track

import tfmot_atmc as atmc
from tfmot_atmc import methods, recipes
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.constraints import CubicBudget
from tfmot_atmc.recipes.pipeline import standard_attacks
from tfmot_atmc.utils.files import write_json

FILES = flags.DEFINE_list("model_file", None, "Trained models.", required=True)
RATIOS = flags.DEFINE_list("ratios", ["0.05", "0.01", "0.005", "0.002", "0.001"], "k / weights.")
SHARES = flags.DEFINE_list(
    "shares", ["0.01", "0.02", "0.05", "0.1", "0.2", "0.3"], "Shares of the budget tried for U."
)
TRAIN = flags.DEFINE_boolean("train", False, "Train, from the factors and plainly, and attack.")
START = flags.DEFINE_float("start", 0.2, "k / weights of the factors that training starts from.")
SHARE = flags.DEFINE_float("share", 0.3, "Share of U in them.")
EPOCHS = flags.DEFINE_integer("epochs", 1, "Epochs of training; 0 for none.")
TEST = flags.DEFINE_integer("test_examples", 5000, "Test images that are attacked.")
OUT = flags.DEFINE_string("out", None, "Where to write results as JSON.")

Matrices = list[np.ndarray]


def oriented(value: np.ndarray) -> np.ndarray:
    """A kernel as the matrix whose rows U mixes: those of its smaller side."""
    matrix = value.reshape(-1, value.shape[-1]).astype(np.float64)
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def largest(values: Matrices, k: int) -> Matrices:
    """Keeps the k entries of largest magnitude over all matrices."""
    flat = np.abs(np.concatenate([value.ravel() for value in values]))
    threshold = np.partition(flat, len(flat) - k)[len(flat) - k]
    return [np.where(np.abs(value) >= threshold, value, 0.0) for value in values]


def error(values: Matrices, approximations: Matrices) -> float:
    """Relative error in the Frobenius norm over all matrices."""
    squares = [np.sum((a - b) ** 2) for a, b in zip(values, approximations, strict=True)]
    return float(np.sqrt(sum(squares) / sum(np.sum(value**2) for value in values)))


def with_atoms(values: Matrices, base: Matrices, count: int) -> tuple[Matrices, Matrices]:
    """Finds `count` entries of U, each the multiple of a row of V that helps another row most.

    Returns (U + I)V, and U.
    """
    current = [v.copy() for v in base]
    norms = [np.maximum(np.sum(v**2, axis=1), 1e-30) for v in base]
    found = [np.zeros((len(v), len(v))) for v in base]
    while count > 0:
        rows = []
        for n, (value, now, v) in enumerate(zip(values, current, base, strict=True)):
            products = (value - now) @ v.T
            gains = np.where(found[n] != 0, 0.0, products**2 / norms[n])
            for i, j in enumerate(gains.argmax(axis=1)):
                if gains[i, j] > 1e-12:
                    rows.append((gains[i, j], n, i, int(j), products[i, j] / norms[n][j]))
        if not rows:
            break
        for _, n, i, j, factor in sorted(rows, reverse=True)[:count]:
            current[n][i] += factor * base[n][j]
            found[n][i, j] = factor
        count -= min(count, len(rows))
    return current, found


def compare(values: Matrices, k: int, shares: list[float]) -> dict[str, Any]:
    """Errors of both approximations with k nonzeros, and what the factors save."""
    alone = error(values, largest(values, k))
    tried = {0.0: alone}
    for share in shares:
        atoms = round(share * k)
        tried[share] = error(values, with_atoms(values, largest(values, k - atoms), atoms)[0])
    share = min(tried, key=lambda key: tried[key])
    # How many of the largest entries alone reach the error of the factors.
    flat = np.sort(np.concatenate([value.ravel() for value in values]) ** 2)[::-1]
    left = np.sqrt(np.maximum(1 - np.cumsum(flat) / flat.sum(), 0))
    needed = k if share == 0 else int(np.searchsorted(-left, -tried[share])) + 1
    return {
        "nonzeros": k,
        "plain": alone,
        "factors": tried[share],
        "share_of_u": share,
        "plain_nonzeros_for_the_same": needed,
        "saved": 1 - k / needed,
    }


def factorised(model: keras.Model, ratio: float, share: float) -> CompressedModel:
    """ATMC's factors of a model, found by the search; with a share of 0, the largest entries."""
    compressed = atmc.compress(model, methods.ATMC(ratio))
    factors = [{f.name.rsplit(":")[-1]: f.variable for f in k.factors} for k in compressed.kernels]
    values = [oriented(named["V"].numpy()) for named in factors]
    k = round(ratio * sum(value.size for value in values))
    atoms = round(share * k)
    base = largest(values, k - atoms)
    for named, v, u in zip(factors, base, with_atoms(values, base, atoms)[1], strict=True):
        shape = named["V"].shape
        turned = np.prod(shape[:-1]) > shape[-1]
        named["V"].assign((v.T if turned else v).reshape(shape))
        named["U"].assign(u.T if turned else u)
    return compressed


def trained(path: str, ratio: float, name: str, data: Any) -> CompressedModel:
    """A method's network after training, or without any; ATMC starts from the search's factors."""
    share = SHARE.value if name == "atmc" else 0.0
    if not EPOCHS.value:
        return factorised(load_plain(path), ratio, share)
    (stage,) = recipes.l0_stages(ratio, EPOCHS.value)
    start: keras.Model = load_plain(path)
    if name == "atmc":
        method = methods.ATMC(ratio, schedule=CubicBudget(START.value, end=0.4))
        stage = dataclasses.replace(stage, name=name, method=method)
        start = factorised(start, START.value, share)
    attack = atmc.attacks.PGD(epsilon=76 / 255, steps=3)
    with tempfile.TemporaryDirectory() as folder:
        return recipes.run_stages(start, [stage], data, attack=attack, out_dir=folder, verbose=2)


def attacked(path: str, ratio: float, data: Any) -> list[dict[str, Any]]:
    """Accuracy of both methods, clean and under attack."""
    rows = []
    for name in ("atmc", "al0"):
        model = trained(path, ratio, name, data)
        report = atmc.evaluate_robustness(
            atmc.strip_compression(model),
            (data.x_test[: TEST.value], data.y_test[: TEST.value]),
            attacks={"PGD-16": standard_attacks(76 / 255)["PGD-16"]},
            verbose=0,
        )
        rows.append(
            {
                "method": name,
                "ratio": ratio,
                "epochs": EPOCHS.value,
                "nonzeros": model.compression_report().parts(),
                "clean": report.clean_accuracy,
                "PGD-16": report.robust_accuracy,
            }
        )
    return rows


def search(path: str, ratios: list[float]) -> list[dict[str, Any]]:
    """Compares the approximations at each budget, and shows them."""
    values = [oriented(w) for w in load_plain(path).get_weights() if w.ndim >= 2]
    total = sum(value.size for value in values)
    shares = [float(share) for share in SHARES.value]
    rows = []
    for ratio in track(ratios, "searching", console=Console(stderr=True)):
        rows.append({"ratio": ratio, **compare(values, round(ratio * total), shares)})
    return rows


def main(_: list[str]) -> None:
    tf.config.threading.set_inter_op_parallelism_threads(1)
    ratios = [float(ratio) for ratio in RATIOS.value]
    found: dict[str, Any] = {}
    data = atmc.datasets.load("mnist") if TRAIN.value else None
    for path in FILES.value:
        rows = search(path, ratios)
        show(path, rows)
        accuracies = [row for r in ratios for row in attacked(path, r, data)] if data else []
        show(path, accuracies)
        found[Path(path).stem] = {"weights": rows, "accuracies": accuracies}
    if OUT.value:
        write_json(OUT.value, found)


if __name__ == "__main__":
    app.run(main)
