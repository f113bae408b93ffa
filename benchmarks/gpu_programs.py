# SPDX-License-Identifier: Apache-2.0
"""What `gpu.py` measures: train steps, attacks and projections as functions of tensors.

Each is one `Program`. It may be run by TensorFlow (`gpu.py`), or lowered (`gpu_lowering.py`) and
run by any XLA (`gpu_replay.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import tfmot_atmc as atmc

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
EPSILON = 8 / 255
# Multiply-accumulates of one forward pass of an image of 32 x 32 pixels.
MACS = {"mlp": 18_492, "resnet18": 555_422_720, "resnet20": 40_551_040}
PRECISIONS = {"float32": "float32", "tf32": "float32", "bfloat16": "mixed_bfloat16"}


class Program(NamedTuple):
    """One function to run again and again.

    Attributes:
        name: what it is.
        make: returns the function and its inputs; called when it is its turn.
        images: examples that a call works on.
        flops: floating-point operations that a call must do, or 0.
        bytes: bytes that a call must move at least, or 0.
        precision: one of `PRECISIONS`.
        group: programs of a group take turns and are compared with its first.
        kept: share of the entries of the first input that are not zero, where that is drawn from
            a normal distribution; 0 where it is not.
    """

    name: str
    make: Callable[[], tuple[Callable[..., Any], Sequence[np.ndarray]]]
    images: int = 0
    flops: float = 0.0
    bytes: float = 0.0
    precision: str = "float32"
    group: str = ""
    kept: float = 0.0


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Makes models compute in a precision inside the context; TF32 is float32 on matrix units."""
    before = keras.mixed_precision.global_policy()
    allowed = tf.config.experimental.tensor_float_32_execution_enabled()
    keras.mixed_precision.set_global_policy(PRECISIONS[name])
    tf.config.experimental.enable_tensor_float_32_execution(name != "float32")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)
        tf.config.experimental.enable_tensor_float_32_execution(allowed)


def images(number: int, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images in [0, 1] and labels of ten classes."""
    random = np.random.default_rng(0)
    x = random.random((number, *shape), np.float32)
    return x, random.integers(0, 10, number).astype(np.int32)


# --- train steps ----------------------------------------------------------------------------------


def compressed(
    model: keras.Model, method: Any, attack: Any, objective: Any = "adversarial", **options: Any
) -> Any:
    """Returns a compressed model that is ready to take steps."""
    small = atmc.compress(model, method=method, attack=attack, objective=objective)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    small.compile(optimizer, LOSS, jit_compile=True, **options)
    small.plan(1000)
    small.optimizer.build(small.trainable_variables)
    return small


def train_step(small: Any) -> Callable[..., Any]:
    """Returns one train step of a compressed model, from images and labels to its metrics."""
    return lambda x, y: small.train_step((x, y))


def plain_step(model: keras.Model, attack: Any) -> Callable[..., Any]:
    """Returns what any adversarial training does: attack, gradient, SGD; ours is but the PGD."""
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(model.trainable_variables)

    def step(x: tf.Tensor, y: tf.Tensor) -> dict[str, tf.Tensor]:
        # Another start at each step; of a constant seed the noise itself would be a constant.
        seed = tf.stack([tf.zeros([], tf.int64), tf.cast(optimizer.iterations, tf.int64)])
        attacked = attack(lambda inputs: model(inputs, training=False), x, y, seed=seed)
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(attacked, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return {"loss": loss}

    return step


def network(name: str, image: int = 32) -> keras.Model:
    """Returns a network for square images; `tiny` has one block, `mlp` none."""
    if name == "mlp":
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Flatten(), keras.layers.Dense(6, "relu"), keras.layers.Dense(10)]
        return keras.Sequential([keras.Input((image, image, 3)), *layers])
    if name == "tiny":
        return atmc.models.resnet([1], widths=(8,), seed=0, input_shape=(image, image, 3))
    return atmc.models.get(name, seed=0)


def methods() -> dict[str, Any]:
    """Returns every method, those with codebooks in each of their ways."""
    m = atmc.methods
    constant: dict[str, Any] = {"schedule": "constant"}
    growth = atmc.constraints.GradientGrowth(begin=0, end=100, interval=1)
    found = {
        "DA": m.DA(),
        "A-l0": m.AL0(0.1, **constant),
        "A-l0, 8 bits": m.AL0(0.1, bits=4, codebook_begin=0, **constant),
        "ALR": m.ALR(0.5),
        "AP": m.AP(0.1),
        "NAP": m.NAP(0.1),
        "ATMC": m.ATMC(0.1, **constant),
        "ATMC, cubic budget": m.ATMC(0.1, schedule="cubic"),
        "ATMC, growth": m.ATMC(0.1, growth=growth, **constant),
        "ATMC, shares of layers": m.ATMC(0.1, layer_exponent=0.5, **constant),
        "ATMC, shared values": m.ATMC(0.1, bits=4, codebook_begin=0, **constant),
        "ATMC, ADMM": m.ATMC(
            0.1, bits=4, algorithm="admm", codebook_begin=0, interval=1, **constant
        ),
    }
    listed = {type(method) for method in found.values()}
    for name in m.names():  # and those that are not listed here
        cls = m.class_of(name)
        if cls not in listed:
            found[name] = cls(ratio=0.1) if cls.takes("ratio") else cls()
    return found


def attacks() -> dict[str, Any]:
    """Returns every attack that can be within a train step, in its ways."""
    a, linf = atmc.attacks, {"epsilon": EPSILON}
    few = {**linf, "steps": 3}
    l2 = {"epsilon": 0.5, "norm": "l2"}
    return {
        "FGSM": a.FGSM(**linf),
        "RFGSM": a.RFGSM(**linf),
        "BIM": a.BIM(**few),
        "PGD": a.PGD(steps=7, unroll=False, **linf),
        "PGD, l2": a.PGD(steps=3, **l2),
        "PGD, restarts": a.PGD(steps=3, restarts=2, keep_best=True, **linf),
        "MIFGSM": a.MIFGSM(**few),
        "TRADES": a.TRADES(**few),
        "WRM": a.WRM(steps=3),
        "APGD": a.APGD(steps=5, **linf),
        "APGD, DLR": a.APGD(steps=5, objective="dlr", **linf),
        "APGD, restarts": a.APGD(steps=5, restarts=2, **linf),
        "APGD-T": a.APGDT(steps=5, num_targets=3, **linf),
        "FAB": a.FAB(steps=3, **linf),
        "Quick AutoAttack": a.QuickAutoAttack(steps=3, num_targets=2, queries=3, **linf),
        "FAB-T": a.FABT(steps=3, num_targets=3, **linf),
        "Square": a.Square(queries=5, **linf),
        "Square, l2": a.Square(queries=5, **l2),
    }


OBJECTIVES = ("adversarial", "half", "trades")


def correctness(image: int = 12, batch: int = 16, net: str = "tiny") -> list[Program]:
    """Returns one train step for every method, attack and objective, of a small network."""
    x, _ = images(batch, (image, image, 3))
    # What the network says itself, so that attacks have something to overturn.
    y = np.argmax(network(net, image)(x), axis=1).astype(np.int32)
    pgd = atmc.attacks.PGD(epsilon=EPSILON, steps=3)

    def step(name: str, method: Any, attack: Any, objective: str = "adversarial") -> Program:
        def make() -> tuple[Callable[..., Any], Sequence[np.ndarray]]:
            used = attack if method.adversarial else None
            return train_step(compressed(network(net, image), method, used, objective)), (x, y)

        return Program(name, make, images=batch)

    found = [step(f"method {name}", method, pgd) for name, method in methods().items()]
    dense = atmc.methods.DA()
    found += [step(f"attack {name}", dense, attack) for name, attack in attacks().items()]
    found += [keyed_step(image, batch, net)]
    found += [step(f"objective {name}", dense, pgd, name) for name in OBJECTIVES]
    return found


def keyed_step(image: int, batch: int, net: str) -> Program:
    """Returns a step of ATTA, whose inputs tell which examples they are."""

    def make() -> tuple[Callable[..., Any], Sequence[np.ndarray]]:
        attack = atmc.attacks.ATTA(
            epsilon=EPSILON, num_examples=2 * batch, image_shape=(image, image, 3), padding=2
        )
        small = compressed(network(net, image), atmc.methods.DA(), attack)
        x, y = images(batch, (image, image, 3))
        window = np.random.default_rng(1).integers(0, 2, (batch, 3)).astype(np.int32)

        def step(x: tf.Tensor, index: tf.Tensor, window: tf.Tensor, y: tf.Tensor) -> Any:
            return small.train_step((atmc.attacks.Keyed(x, index, window), y))

        return step, (x, np.arange(batch, dtype=np.int32), window, y)

    return Program("attack ATTA", make, images=batch)


def steps(
    model: str, batch: int, how: str, names: Sequence[str] = (), ratio: float = 0.05, count: int = 7
) -> list[Program]:
    """Returns the plain PGD step and ours without and with compression, as one group."""
    x, y = images(batch, (32, 32, 3))
    pgd = atmc.attacks.PGD(epsilon=EPSILON, steps=count, unroll=False)
    variants: dict[str, Any] = {
        "no compression": atmc.methods.DA(),
        "A-l0": atmc.methods.AL0(ratio),
        "ATMC": atmc.methods.ATMC(ratio),
    }

    def plain() -> tuple[Callable[..., Any], Sequence[np.ndarray]]:
        return plain_step(network(model), pgd), (x, y)

    makers: dict[str, Any] = {"plain": plain}
    for name, method in variants.items():
        makers[name] = lambda method=method: (
            train_step(compressed(network(model), method, pgd)),
            (x, y),
        )
    group = f"{model}, batch {batch}, {how}"
    # A pass forward costs two operations a multiply-accumulate, a gradient as many again.
    flops = 2.0 * MACS[model] * batch * (2 * count + 3)
    return [
        Program(f"{name}, {group}", make, batch, flops, precision=how, group=f"step, {group}")
        for name, make in makers.items()
        if not names or name in names
    ]


# --- attacks --------------------------------------------------------------------------------------


def floor(model: keras.Model, count: int) -> Callable[..., tf.Tensor]:
    """Returns `count` passes forward and backward to the inputs, and nothing else."""

    def run(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        def once(x: tf.Tensor) -> tuple[tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                loss = LOSS(y, model(x, training=False))
            return (x + 1e-3 * tape.gradient(loss, x),)

        return tf.while_loop(lambda x: True, once, (x,), maximum_iterations=count)[0]

    return run


def rivals(model: str, batch: int, how: str, count: int = 10) -> list[Program]:
    """Returns PGD and APGD beside CleverHans's PGD and the floor, as one group."""
    x, y = images(batch, (32, 32, 3))
    inputs = (x, y, np.zeros(2, np.int64))
    step = 2 / 255
    bim = atmc.attacks.BIM(epsilon=EPSILON, steps=count, step_size=step, unroll=False)
    apgd = atmc.attacks.APGD(epsilon=EPSILON, steps=count)

    def ours(attack: Any) -> Callable[..., Any]:
        def make() -> tuple[Callable[..., Any], Sequence[np.ndarray]]:
            net = network(model)
            return lambda x, y, s: attack(lambda i: net(i, training=False), x, y, seed=s), inputs

        return make

    def cleverhans() -> tuple[Callable[..., Any], Sequence[np.ndarray]]:
        from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

        net = network(model)

        def run(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            return projected_gradient_descent(
                lambda i: tf.cast(net(i, training=False), tf.float32),
                x,
                EPSILON,
                step,
                count,
                np.inf,
                clip_min=0.0,
                clip_max=1.0,
                y=y,
                rand_init=0.0,
                sanity_checks=False,
            )

        return run, (x, y)

    makers = {
        "PGD": ours(bim),
        "CleverHans": cleverhans,
        "floor": lambda: (floor(network(model), count), (x, y)),
        "APGD": ours(apgd),
    }
    group = f"{model}, batch {batch}, {how}"
    flops = 2.0 * MACS[model] * batch * 2 * count
    return [
        Program(f"{name}, {group}", make, batch, flops, precision=how, group=f"attack, {group}")
        for name, make in makers.items()
    ]


# --- projection -----------------------------------------------------------------------------------


def weights(size: int, kept: float = 1.0) -> np.ndarray:
    """Returns normally distributed weights of which the largest share is kept."""
    x = np.random.default_rng(0).standard_normal(size, np.float32)
    if kept < 1:
        x[np.abs(x) < np.quantile(np.abs(x[:1_000_000]), 1 - kept)] = 0
    return x


def projections(size: int, share: float = 0.01) -> list[Program]:
    """Returns the l0 projection of that many weights beside `tf.math.top_k` and a copy."""
    k = int(share * size)

    def top_k(x: tf.Tensor) -> tf.Tensor:
        _, index = tf.math.top_k(tf.abs(x), k, sorted=False)
        return tf.scatter_nd(index[:, None], tf.gather(x, index), [size])

    functions = {
        "project_l0": lambda x: atmc.math.project_l0([x], k, algorithm="bisection")[0],
        "top_k and scatter": top_k,
        "copy": lambda x: -x,
    }
    group = f"{size:,} weights"
    return [
        Program(
            f"{name}, {group}",
            lambda f=f: (f, (weights(size),)),
            bytes=8.0 * size,
            group=f"projection, {group}",
            kept=1.0,
        )
        for name, f in functions.items()
    ]


def clusterings(size: int, share: float = 0.01, values: Sequence[int] = (16, 256)) -> list[Program]:
    """Returns zero k-means of projected weights, with static shapes."""
    group = f"{size:,} weights"

    def cluster(number: int) -> Callable[[tf.Tensor], tf.Tensor]:
        return lambda x: atmc.math.zero_kmeans(x, number, where=x != 0, static=True).values

    return [
        Program(
            f"zero_kmeans to {number}, {group}",
            lambda n=number: (cluster(n), (weights(size, share),)),
            bytes=8.0 * size,
            group=f"k-means to {number}, {group}",
            kept=share,
        )
        for number in values
    ]


# --- sections -------------------------------------------------------------------------------------


def ratios(smoke: bool) -> list[Program]:
    """Returns what is compared on a network, the most telling groups first."""
    if smoke:
        return steps("mlp", 4, "tf32", ("plain", "ATMC"), count=1)
    two = ("plain", "ATMC")
    found = steps("resnet18", 128, "tf32")
    found += rivals("resnet18", 128, "tf32")
    found += steps("resnet18", 128, "bfloat16", two)
    found += steps("resnet18", 512, "bfloat16", two)
    found += steps("resnet20", 128, "tf32", two)
    found += steps("resnet18", 128, "float32", two)
    found += steps("resnet18", 2048, "bfloat16", two)
    found += rivals("resnet18", 512, "bfloat16")
    return found + steps("resnet20", 2048, "bfloat16", two)


def selections(smoke: bool) -> list[Program]:
    """Returns projections and clusterings, the larger ones last."""
    found = []
    for size in (1000,) if smoke else (10_000_000, 100_000_000):
        found += projections(size) + clusterings(size)
    return found


def sections(smoke: bool = False) -> dict[str, list[Program]]:
    """Returns all programs by section, most important first.

    Args:
        smoke: few and small ones, for a test on a CPU.
    """
    all_steps = correctness(4, 4, "mlp") if smoke else correctness()
    wanted = ("method ATMC", "attack APGD-T", "objective trades")
    return {
        "correctness": [p for p in all_steps if not smoke or p.name in wanted],
        "ratios": ratios(smoke),
        "selection": selections(smoke),
    }
