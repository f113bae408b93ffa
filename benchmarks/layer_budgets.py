# SPDX-License-Identifier: Apache-2.0
"""Ways to share one budget of nonzeros out among layers, on networks with small layers.

    python benchmarks/layer_budgets.py --networks ds_cnn,resnet8 --ratios 0.1 --seeds 0

Each network is trained densely on made-up data of its shape (LeNet: on MNIST's first images,
ResNet-20: on CIFAR-10's), then pruned by the same number of steps on clean inputs, once for every
way. Kept are the accuracy (the square error for the autoencoder) of the model as deployed, the same
after its batch normalisation has seen the data again, and which layers are left with nothing. Runs
that are kept already are not run again.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfmot_atmc as atmc
from tfmot_atmc.constraints import CubicBudget
from tfmot_atmc.constraints.sparsity import GlobalSparsity
from tfmot_atmc.datasets import made_up
from tfmot_atmc.math import allocate_budget
from tfmot_atmc.utils.files import write_json

WAYS = (
    "global",
    "even",
    "root",
    "flat",
    "erk",
    "lamp",
    "scaled",
    "floors",
    "higher_floors",
    "flat_floors",
)
NETWORKS = (
    *("ds_cnn", "autoencoder", "lenet", "resnet8", "mobilenet_v1"),
    *("mobilenet_v2", "efficientnet_b0", "resnet20"),
)

NETS = flags.DEFINE_list("networks", list(NETWORKS[:5]), "Networks.")
RATIOS = flags.DEFINE_list("ratios", ["0.1", "0.05", "0.3"], "Nonzeros per dense weight.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds.")
CHOSEN = flags.DEFINE_list("ways", list(WAYS), "Ways to share out.")
OUT = flags.DEFINE_string("out", "benchmarks/results/layer_budgets", "Folder for results.")
DENSE = flags.DEFINE_string("dense", "layer_budgets", "Folder for the dense models.")
TEST = flags.DEFINE_integer("test", 300, "Test examples.")


@dataclasses.dataclass(frozen=True)
class Task:
    """Data of one network, and how long it trains."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    classes: int
    dense_epochs: int
    epochs: int
    rate: float = 2e-3


def task_of(network: str) -> Task:
    if network == "lenet":
        data = atmc.datasets.load("mnist", limit=3000)
        train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
        return Task(train, test, 10, 4, 4, rate=1e-3)
    if network == "resnet20":
        data = atmc.datasets.load("cifar10", limit=2000)
        train, test = (data.x_train, data.y_train), (data.x_test, data.y_test)
        return Task(train, test, 10, 4, 3)
    if network in ("mobilenet_v2", "efficientnet_b0"):
        train, test, classes = made_up.make("made_up_people")
        small = [(x[:, 16:80, 16:80], y) for x, y in (train, test)]
        return Task(small[0], small[1], classes, 4, 4, rate=1e-3)
    train, test, classes = made_up.make(made_up.NETWORKS[network])
    few = 4 if network == "mobilenet_v1" else 6
    return Task(train, test, classes, few, few)


def network_of(name: str, task: Task, seed: int) -> keras.Model:
    shape = task.train[0].shape[1:]
    if name == "mobilenet_v2":
        model = keras.applications.MobileNetV2(
            shape, alpha=0.35, weights=None, classes=task.classes, classifier_activation=None
        )
    elif name == "efficientnet_b0":
        model = keras.applications.EfficientNetB0(
            input_shape=shape, weights=None, classes=task.classes, classifier_activation=None
        )
    else:
        more = {"num_classes": task.classes} if task.classes else {}
        return atmc.models.get(name, input_shape=shape, seed=seed, **more)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9
    return model


class Shared(GlobalSparsity):
    """A budget shared out in one of the ways."""

    def __init__(self, ratio: float, way: str = "global"):
        super().__init__(ratio, schedule=CubicBudget(end=0.6))
        self.way = way

    def build(self, factors: Any, dense_size: int, add_weight: Any) -> None:
        super().build(factors, dense_size, add_weight)
        shapes = [tuple(f.variable.shape) for f in self._factors]
        self._sizes = [int(np.prod(shape)) for shape in shapes]
        start = [f.variable.numpy() for f in self._factors]
        self._scales = [1 / max(float(np.sqrt(np.mean(v**2))), 1e-12) for v in start]
        self._shares = self._parts(shapes)

    def _parts(self, shapes: list[tuple[int, ...]]) -> list[int] | None:
        exponent = {"even": 1.0, "root": 0.5, "flat": 0.1}.get(self.way)
        if exponent is not None:
            return allocate_budget(self._sizes, self.budget, exponent)
        if self.way == "floors":
            return allocate_budget(self._sizes, self.budget // 2, 0.5)
        if self.way == "higher_floors":
            return allocate_budget(self._sizes, 3 * self.budget // 4, 0.5)
        if self.way == "flat_floors":
            return allocate_budget(self._sizes, self.budget // 4, 0.1)
        if self.way != "erk":
            return None
        raw = np.array([sum(s) / np.prod(s) for s in shapes])
        whole = np.zeros(len(raw), bool)
        while True:  # a layer that would get more than it has is kept whole
            sizes = np.array(self._sizes)
            left = max(self.budget - sizes[whole].sum(), 0)
            factor = left / (raw * sizes)[~whole].sum()
            over = ~whole & (factor * raw > 1)
            if not over.any():
                return np.where(whole, sizes, (factor * raw * sizes).astype(int)).tolist()
            whole |= over

    def _top(self, scores: Any, k: Any, compiled: bool = False) -> list[tf.Tensor]:
        scores = [tf.abs(score) for score in scores]
        if self.way == "lamp":
            scores = [_lamp(score) for score in scores]
        elif self.way == "scaled":
            scores = [scale * score for scale, score in zip(self._scales, scores, strict=True)]
        if self._shares is None:
            return super()._top(scores, k, compiled)
        own, total = sum(self._shares), sum(self._sizes)
        keep = self.way.endswith("floors")
        above = tf.cast(k, tf.float64) - own
        above = tf.constant(0.0, tf.float64) if keep else tf.maximum(above / (total - own), 0.0)
        masks = []
        for score, size, share in zip(scores, self._sizes, self._shares, strict=True):
            count = share + tf.cast(above * (size - share), tf.int32)
            masks += self._largest([score], count, compiled)
        if not keep:
            return masks
        largest = tf.reduce_max([tf.reduce_max(score) for score in scores])
        kept = [tf.where(m, 2 * largest, s) for m, s in zip(masks, scores, strict=True)]
        return super()._top(kept, k, compiled)

    def finalized(self, values: Any) -> list[np.ndarray]:
        masks = self._top([tf.constant(v) for v in values], self.budget)
        return [np.where(m.numpy(), v, np.float32(0)) for m, v in zip(masks, values, strict=True)]


class SharedBudget(atmc.methods.Method):
    """Plain kernels under a budget shared out in one of the ways."""

    def __init__(self, ratio: float, way: str = "global"):
        self.ratio, self.way = ratio, way

    def constraints(self) -> list[Any]:
        return [Shared(self.ratio, self.way)]


def _lamp(score: tf.Tensor) -> tf.Tensor:
    """The square over the sum of the squares that are not smaller (Lee et al., ICLR 2021)."""
    flat = tf.square(tf.reshape(score, (-1,)))
    order = tf.argsort(flat, direction="DESCENDING")
    sums = tf.cumsum(tf.gather(flat, order))
    values = tf.gather(flat, order) / tf.maximum(sums, 1e-30)
    return tf.reshape(tf.scatter_nd(order[:, None], values, tf.shape(flat)), score.shape)


def compiled(model: Any, task: Task, steps: int) -> None:
    loss: Any = "mse"
    if task.classes:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rate = keras.optimizers.schedules.CosineDecay(task.rate, steps)
    model.compile(keras.optimizers.Adam(rate), loss)


def measure(model: keras.Model, task: Task) -> float:
    x, y = (part[: TEST.value] for part in task.test)
    outputs = model.predict(x, batch_size=100, verbose=0)
    if not task.classes:
        return float(np.mean((outputs - y) ** 2))
    return float(np.mean(outputs.argmax(-1) == y))


def seen_again(model: keras.Model, x: np.ndarray) -> keras.Model:
    """Batch normalisation's statistics from some batches, by momentum."""
    order = np.random.default_rng(0).permutation(len(x))
    for start in range(0, min(len(x), 40 * 32), 32):
        model(x[order[start : start + 32]], training=True)
    return model


def trained_dense(network: str, seed: int, task: Task) -> tuple[keras.Model, float]:
    path = Path(DENSE.value) / f"{network}-{seed}.keras"
    if not path.exists():
        keras.utils.set_random_seed(seed)
        model = network_of(network, task, seed)
        compiled(model, task, task.dense_epochs * -(-len(task.train[0]) // 32))
        model.fit(*task.train, batch_size=32, epochs=task.dense_epochs, verbose=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    model = keras.saving.load_model(path, compile=False)
    return model, measure(model, task)


def one(dense: keras.Model, task: Task, ratio: float, seed: int, way: str) -> dict[str, Any]:
    keras.utils.set_random_seed(seed)
    begin = time.process_time()
    small = atmc.compress(dense, SharedBudget(ratio, way), seed=seed)
    compiled(small, task, task.epochs * -(-len(task.train[0]) // 32))
    done = [atmc.callbacks.UpdateCompression()]
    small.fit(*task.train, batch_size=32, epochs=task.epochs, verbose=0, callbacks=done)
    report = small.compression_report()
    final = atmc.strip_compression(small)
    deployed = measure(final, task)
    return {
        "deployed": deployed,
        "statistics_seen_again": measure(seen_again(final, task.train[0]), task),
        "nonzeros": report.nonzeros,
        "empty_layers": [f.name for f in report.factors if not f.nonzeros],
        "seconds": round(time.process_time() - begin, 1),
    }


def main(_: list[str]) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    Path(OUT.value).mkdir(parents=True, exist_ok=True)
    for seed in map(int, SEEDS.value):
        for ratio in RATIOS.value:
            for network in NETS.value:
                path = Path(OUT.value) / f"{network}.json"
                kept = json.loads(path.read_text()) if path.exists() else {}
                wanted = [w for w in CHOSEN.value if f"{w} {ratio} {seed}" not in kept]
                if not wanted:
                    continue
                task = task_of(network)
                dense, before = trained_dense(network, seed, task)
                kept[f"dense {seed}"] = {"deployed": before}
                for way in wanted:
                    row = one(dense, task, float(ratio), seed, way)
                    kept[f"{way} {ratio} {seed}"] = row
                    print(network, way, ratio, seed, row, flush=True)
                    write_json(path, kept)
                    keras.utils.clear_session(free_memory=False)


if __name__ == "__main__":
    app.run(main)
