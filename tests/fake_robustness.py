# SPDX-License-Identifier: Apache-2.0
"""Models that fake robustness in known ways, and sound ones; each fake with its truth.

`python tests/fake_robustness.py` prints what every entry point reports of each. The truth is an
upper bound, checked on the target itself: of what is right on clean inputs, what stays right on
the adversarial examples of the unmasked network (`truth`).
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tfmot_atmc as atmc
from tfmot_atmc.attacks import FGSM, PGD

EPSILON = 0.2
N = 60  # examples under attack
layers = keras.layers


@dataclasses.dataclass
class Fake:
    """One way to look robust.

    Attributes:
        model: From the sound network to the target.
        data: From sound test data to those of the evaluation.
        attack: Changes the arguments of the attacks.
        truth: From the sound network, target, data and attack to an upper bound of the accuracy;
            None for that by the sound network's gradients.
    """

    model: Callable[[keras.Model], Any]
    data: Callable[[Any, Any], tuple[Any, Any]] = lambda x, y: (x, y)
    attack: dict = dataclasses.field(default_factory=dict)
    truth: Callable[..., float] | None = None


def digits():
    """Training and test data: images 8 x 8 in [0, 1]."""
    data = atmc.datasets.load("digits")
    return (data.x_train[:800], data.y_train[:800]), (data.x_test[:N], data.y_test[:N])


def trained(body, train, seed=1, epochs=25, loss=None, attack=None):
    """A small network, trained; adversarially where an attack is given."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((8, 8, 1)), *body], name="net")
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    x, y = train
    if attack is None:
        model.fit(x, y, epochs=epochs, batch_size=50, verbose=0)
        return model
    for _ in range(epochs):
        for start in range(0, len(y), 100):
            part = slice(start, start + 100)
            model.train_on_batch(attack(model, x[part], y[part]), y[part])
    return model


def mlp(units=48, act="relu", out=10):
    return [layers.Flatten(), layers.Dense(units, activation=act), layers.Dense(out)]


def sound_network(train):
    return trained(mlp(), train)


# --- models that fake -----------------------------------------------------------------------------


def named(function, name):
    function.__name__ = name
    return function


@tf.custom_gradient
def zero_round(x):
    return tf.round(x * 8) / 8, tf.zeros_like


@tf.custom_gradient
def reversed_gradient(x):
    return tf.identity(x), tf.negative


def checkerboard(every):
    mask = np.zeros((8, 8, 1), "float32")
    mask[::every, ::every] = 1
    return mask


def partly(mask):
    """The gradient reaches only the pixels of the mask."""
    return lambda m: lambda x: m(x * mask + tf.stop_gradient(x * (1 - mask)))


def weak_path(m):
    weights = np.random.default_rng(0).normal(size=(64, 10)).astype("float32")
    return lambda x: m(tf.stop_gradient(x)) + 1e-3 * tf.reshape(x, (-1, 64)) @ weights


def softmax_by_hand(m):
    def model(x):
        e = tf.exp(3 * m(x) - tf.reduce_max(3 * m(x), axis=1, keepdims=True))
        return e / tf.reduce_sum(e, axis=1, keepdims=True)

    return model


def averaged(m):
    """An ensemble that averages probabilities, each of them saturated."""
    return lambda x: (softmax_by_hand(m)(x) + tf.nn.softmax(40 * m(x)) + 0.0) / 2


def rarely_noisy(m):
    def model(x):
        noise = 20 * tf.random.normal(tf.shape(m(x)))
        return m(x) + tf.where(tf.random.uniform([]) < 0.1, noise, tf.zeros_like(noise))

    return model


def shifted_at_random(m):
    def model(x):
        steps = tf.random.uniform([2], -1, 2, tf.int32)
        return m(tf.roll(x, steps, axis=[1, 2]))

    return model


def one_of_two(m):
    return lambda x: (
        m(x) * tf.where(tf.random.uniform([]) < 0.5, 1.0, 0.5)
        + tf.where(tf.random.uniform([]) < 0.5, 1.0, 0.0) * tf.constant([[1.0] + [0.0] * 9])
    )


@keras.saving.register_keras_serializable(package="fake")
class Winners(layers.Layer):
    """Keeps the k largest of the units: gradients jump."""

    def __init__(self, k=6, **kwargs):
        super().__init__(**kwargs)
        self.k = k

    def call(self, x):
        least = tf.math.top_k(x, self.k).values[:, -1:]
        return tf.where(x >= least, x, tf.zeros_like(x))


def winners(m):
    (kernel, bias), (last, last_bias) = m.layers[1].get_weights(), m.layers[2].get_weights()
    copies = 12
    noise = np.random.default_rng(0).normal(size=(64, copies * 48)).astype("float32")
    wide = np.tile(kernel, (1, copies)) + 0.5 * noise * np.abs(kernel).mean()
    keep = Winners(60)

    def model(x):
        hidden = tf.nn.relu(tf.reshape(x, (-1, 64)) @ wide + np.tile(bias, copies))
        return keep(hidden) @ np.tile(last, (copies, 1)) + last_bias

    return model


def staircase(m):
    @tf.custom_gradient
    def stairs(h):
        return tf.floor(
            h * 4
        ) / 4, lambda g: g * tf.cast(tf.abs(h * 4 - tf.round(h * 4)) < 0.02, g.dtype)

    def model(x):
        hidden = stairs(m.layers[1](m.layers[0](x)))
        return m.layers[2](hidden)

    return model


def wobbly(m):
    """The slope of the input has every sign; the value hardly moves."""
    return lambda x: m(x + 0.004 * tf.sin(600.0 * x))


def nan_gradients(m):
    return lambda x: m(x + 1e-6 * tf.sqrt(tf.square(x)))


@keras.saving.register_keras_serializable(package="fake")
class BatchStatistics(layers.Layer):
    def call(self, x):
        mean, var = tf.nn.moments(x, axes=[0])
        return (x - mean) / tf.sqrt(var + 1e-3)


def batch_statistics(m):
    norm = BatchStatistics()
    return lambda x: m.layers[2](norm(m.layers[1](m.layers[0](x))) + 1.0)


def masked_but_for_the_first_class(m):
    def model(x):
        z = m(x)
        first = tf.argmax(z, axis=1) == 0
        return tf.where(first[:, None], z, tf.stop_gradient(1e4 * z) + 1e-9 * z)

    return model


@tf.custom_gradient
def straight_round(z):
    return tf.round(z / 4), lambda g: g


@tf.custom_gradient
def one_hot(z):
    return tf.one_hot(tf.argmax(z, axis=1), z.shape[-1]), lambda g: g


def training_noise(m):
    i = keras.Input((8, 8, 1))
    h = layers.GaussianNoise(0.5)(i, training=True)
    return keras.Model(i, m(h), name="noise")


def dropout_at_test_time(m):
    return lambda x: m.layers[2](tf.nn.dropout(m.layers[1](m.layers[0](x)), 0.3))


def abstaining(m):
    """An eleventh class for whatever is no multiple of a sixteenth, as all digits are."""

    def model(x):
        odd = tf.reduce_max(tf.abs(x * 16 - tf.round(x * 16)), axis=[1, 2, 3]) > 0.01
        return tf.concat([m(x), tf.where(odd, 1e4, -1e4)[:, None]], axis=1)

    return model


def sorted_by_class(x, y):
    order = np.argsort(y, kind="stable")
    return x[order], y[order]


def wrong_sign(y, logits):
    return -tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y, tf.int64), logits)


@keras.saving.register_keras_serializable(package="fake")
class Sieve(layers.Layer):
    """Lets the gradient through to one pixel of sixteen."""

    def call(self, x):
        mask = checkerboard(4)
        return x * mask + tf.stop_gradient(x * (1 - mask))


@keras.saving.register_keras_serializable(package="fake")
class Coarse(layers.Layer):
    """Logits on a grid, as those of a full-integer file."""

    def call(self, x):
        return tf.round(x / 2) * 2


def rebuilt(m, *, front=(), middle=(), last=()):
    """The sound network as a Keras model with further layers, its weights kept."""
    parts = [layers.Flatten(), layers.Dense(48, activation="relu"), *middle, layers.Dense(10)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *front, *parts, *last], name="fake")
    dense = [layer for layer in model.layers if isinstance(layer, layers.Dense)]
    for new, old in zip(dense, m.layers[1:], strict=True):
        new.set_weights(old.get_weights())
    return model


# Those that are Keras models, and so can be compressed, saved and converted.
KERAS_FAKES = {
    "logits times a thousand": lambda m: rebuilt(m, last=[layers.Rescaling(1e3)]),
    "gradient of a sixteenth of the pixels": lambda m: rebuilt(m, front=[Sieve()]),
    "winners take all": lambda m: rebuilt(m, middle=[Winners(8)]),
    "batch statistics at test time": lambda m: rebuilt(m, middle=[BatchStatistics()]),
}

FAKES = {
    "logits times a thousand": Fake(lambda m: lambda x: 1e3 * m(x)),
    "softmax by hand": Fake(softmax_by_hand),
    "averaged probabilities": Fake(averaged),
    "clipped logits": Fake(lambda m: lambda x: 10 * tf.tanh(5 * m(x))),
    "rounded inputs": Fake(lambda m: lambda x: m(zero_round(x))),
    "weak path beside a stopped gradient": Fake(weak_path),
    "gradient of a sixteenth of the pixels": Fake(partly(checkerboard(4))),
    "gradient of a quarter of the pixels": Fake(partly(checkerboard(2))),
    "reversed gradient": Fake(lambda m: lambda x: m(reversed_gradient(x))),
    "masked but for the first class, sorted": Fake(
        masked_but_for_the_first_class, data=sorted_by_class
    ),
    "wobbly inputs": Fake(wobbly),
    "staircase": Fake(staircase),
    "winners take all": Fake(winners),
    "NaN gradients": Fake(nan_gradients),
    "noise on the logits": Fake(lambda m: lambda x: m(x) + 4 * tf.random.normal((1, 10))),
    "noise in one call of ten": Fake(rarely_noisy),
    "dropout at test time": Fake(dropout_at_test_time),
    "random shifts": Fake(shifted_at_random),
    "one of two networks": Fake(one_of_two),
    "noise with training=True": Fake(training_noise),
    "batch statistics at test time": Fake(batch_statistics),
    "abstain class": Fake(abstaining),
    "rounded logits": Fake(lambda m: lambda x: straight_round(m(x))),
    "hard labels": Fake(lambda m: lambda x: one_hot(m(x))),
    "labels shifted by one": Fake(lambda m: m, data=lambda x, y: (x, (y + 1) % 10)),
    "epsilon for [0, 1], pixels 0..255": Fake(
        lambda m: lambda x: m(x / 255.0),
        data=lambda x, y: (x * 255, y),
        attack={"bounds": (0.0, 255.0)},
        truth=lambda m, target, x, y: bound(m, target, x, y, scale=255.0),
    ),
    "epsilon for 0..255, pixels [0, 1]": Fake(
        lambda m: m, attack={"epsilon": 8.0}, truth=lambda *_: 1.0
    ),
    "loss of the wrong sign": Fake(lambda m: m, attack={"loss": wrong_sign}),
}


# --- sound models ---------------------------------------------------------------------------------


def adversarially(train):
    attack = PGD(epsilon=0.1, steps=5, step_size=0.03)
    return trained(mlp(64), train, attack=attack, epochs=25)


def normalised(train):
    body = [layers.Flatten(), layers.Dense(48), layers.BatchNormalization(), layers.ReLU()]
    return trained([*body, layers.Dense(10)], train)


def convolutional(train):
    body = [layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten()]
    return trained([*body, layers.Dense(10)], train)


def softmax_at_the_end(train):
    loss = keras.losses.SparseCategoricalCrossentropy()
    return trained([*mlp(), layers.Softmax()], train, loss=loss)


def two_classes(train):
    return trained(mlp(out=2), (train[0], train[1] % 2))


def single_sigmoid(train):
    body = [layers.Flatten(), layers.Dense(48, activation="relu")]
    body += [layers.Dense(1, activation="sigmoid")]
    return trained(body, (train[0], train[1] % 2), loss="binary_crossentropy")


SOUND = {
    "dense": (sound_network, {}),
    "linear": (lambda t: trained([layers.Flatten(), layers.Dense(10)], t), {}),
    "tanh": (lambda t: trained(mlp(act="tanh"), t), {}),
    "gelu": (lambda t: trained(mlp(act="gelu"), t), {}),
    "convolutional": (convolutional, {}),
    "batch normalisation": (normalised, {}),
    "softmax at the end": (softmax_at_the_end, {}),
    "two classes": (two_classes, {"even": True}),
    "single sigmoid": (single_sigmoid, {"even": True}),
    "adversarially trained": (adversarially, {"epsilon": 0.1}),
    "dropout, in inference mode": (
        lambda t: trained([*mlp()[:2], layers.Dropout(0.3), layers.Dense(10)], t),
        {},
    ),
    "l2": (sound_network, {"norm": "l2", "epsilon": 1.0}),
}


# --- what is reported, and what is true -----------------------------------------------------------


def bound(m, target, x, y, epsilon=EPSILON, scale=1.0):
    """What stays right, of the target itself, on examples made by the sound network's gradients."""
    predict = atmc.evaluation.targets.as_target(target).predict
    right = predict(x).argmax(axis=1) == y
    for attack in (
        PGD(epsilon=epsilon, steps=40, step_size=epsilon / 8, seed=0),
        PGD(epsilon=epsilon, steps=40, step_size=epsilon / 8, seed=1),
    ):
        made = np.asarray(attack(m, x / scale, y)) * np.float32(scale)
        right &= predict(made.astype("float32")).argmax(axis=1) == y
    return float(right.mean())


def attack_of(entry, **changed):
    """Arguments of `evaluate_robustness` for an entry point."""
    options = {"epsilon": EPSILON} | changed
    if entry == "pgd":
        return {"attacks": PGD(**{"steps": 16, "step_size": options["epsilon"] / 6, **options})}
    if entry == "fgsm":
        return {"attacks": FGSM(**options)}
    options.pop("loss", None)
    if entry == "square":
        return {"attacks": atmc.attacks.Square(queries=300, **options)}
    return {"attacks": atmc.attacks.AutoAttack(steps=20, queries=300, **options)}


def report_of_fake(name, m, test, entry):
    """The report, and the truth."""
    fake = FAKES[name]
    target, (x, y) = fake.model(m), fake.data(*test)
    report = atmc.evaluate_robustness(
        target, (x, y), **attack_of(entry, **fake.attack), verbose=0, batch_size=20
    )
    return report, (fake.truth or bound)(m, target, x, y)


def report_of_sound(name, train, test):
    build, changed = SOUND[name]
    changed = dict(changed)
    even = changed.pop("even", False)
    x, y = test
    model = build((train[0], train[1]))
    attack = PGD(
        **{"epsilon": EPSILON, "steps": 40, **changed},
        step_size=changed.get("epsilon", EPSILON) / 8,
    )
    return atmc.evaluate_robustness(model, (x, y % 2 if even else y), attacks=attack, verbose=0)


def report_of_keras_fake(name, m, test, entry, form):
    """The report on a compressed model or a file, and the truth."""
    model, (x, y) = KERAS_FAKES[name](m), test
    if form == "compressed":
        target, source = atmc.compress(model, "al0", ratio=1.0), None
    else:
        path = pathlib.Path(tempfile.mkdtemp()) / "fake.tflite"
        path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
        target, source = str(path), None if entry == "square" else model
    report = atmc.evaluate_robustness(
        target, (x, y), **attack_of(entry), source=source, verbose=0, batch_size=20
    )
    return report, bound(m, target, x, y)


def main():
    import sys

    train, test = digits()
    m = sound_network(train)
    entries = sys.argv[1:] or ["pgd", "fgsm", "square", "autoattack"]
    print("| fake | truth |", " | ".join(entries), "|")
    for name in FAKES:
        cells, truth = [], float("nan")
        for entry in entries:
            try:
                report, truth = report_of_fake(name, m, test, entry)
                cells.append(f"{report.robust_accuracy:.0%}, {len(report.warnings)} warnings")
                if "-v" in sys.argv:
                    print(*report.warnings, sep="\n  ")
            except ValueError as error:
                cells.append(f"refused: {str(error).splitlines()[0][:40]}")
        print(f"| {name} | {truth:.0%} |", " | ".join(cells), "|", flush=True)
    for name in KERAS_FAKES:
        for form in ("compressed", "file"):
            cells = []
            for entry in entries:
                report, truth = report_of_keras_fake(name, m, test, entry, form)
                cells.append(f"{report.robust_accuracy:.0%}, {len(report.warnings)} warnings")
            print(f"| {name}, {form} | {truth:.0%} |", " | ".join(cells), "|", flush=True)
    for name in SOUND:
        report = report_of_sound(name, train, test)
        print(
            f"| {name} | clean {report.clean_accuracy:.0%} | robust {report.robust_accuracy:.0%} |",
            report.second_opinion.get("accuracy"),
            report.warnings,
            flush=True,
        )


if __name__ == "__main__":
    main()
