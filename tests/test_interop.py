# SPDX-License-Identifier: Apache-2.0
"""Models in the hands of other attack libraries: they do what our attacks do."""

import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from tfmot_atmc.interop import to_art, to_cleverhans, to_foolbox

from tfmot_atmc import compress
from tfmot_atmc.attacks import FGSM, PGD

layers = keras.layers
EPSILON = 0.1


@pytest.fixture(scope="module")
def softmax_model():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(5),
            layers.Softmax(),
        ]
    )


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(1)
    images = generator.uniform(0, 1, (12, 6, 6, 2)).astype("float32")
    return images, generator.integers(0, 5, 12)


@pytest.mark.parametrize("steps", [1, 5])
def test_cleverhans_finds_what_ours_finds(softmax_model, batch, steps):
    pytest.importorskip("cleverhans")
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    images, labels = batch
    theirs = projected_gradient_descent(
        to_cleverhans(softmax_model),
        images,
        EPSILON,
        EPSILON / 3,
        steps,
        np.inf,
        clip_min=0.0,
        clip_max=1.0,
        y=tf.constant(labels),
        rand_init=False,
        sanity_checks=False,
    )
    attack = PGD(epsilon=EPSILON, steps=steps, step_size=EPSILON / 3, random_start=False)
    np.testing.assert_allclose(theirs, attack(softmax_model, images, labels), atol=1e-6)


def test_art_finds_what_ours_finds_also_on_a_compressed_model(softmax_model, batch):
    pytest.importorskip("art")
    from art.attacks.evasion import FastGradientMethod

    images, labels = batch
    for model in (softmax_model, compress(softmax_model, "da")):
        classifier = to_art(model)
        assert classifier.nb_classes == 5
        assert classifier.input_shape == (6, 6, 2)
        logits = classifier.predict(images)
        assert logits.min() < 0  # not probabilities
        np.testing.assert_allclose(tf.nn.softmax(logits), softmax_model(images), atol=1e-6)
        theirs = FastGradientMethod(classifier, eps=EPSILON).generate(images, y=np.eye(5)[labels])
        ours = FGSM(epsilon=EPSILON)(model, images, labels)
        np.testing.assert_allclose(theirs, ours, atol=1e-6)
        per_example = classifier.compute_loss(images, np.eye(5)[labels], reduction="none")
        wanted = -np.log(np.take_along_axis(softmax_model(images).numpy(), labels[:, None], 1))
        np.testing.assert_allclose(per_example, wanted[:, 0], atol=1e-5)


def test_art_around_a_function_asks_for_the_shapes(batch):
    pytest.importorskip("art")
    images, _ = batch
    weights = tf.ones((72, 3))

    def linear(x):
        return tf.reshape(x, (-1, 72)) @ weights

    classifier = to_art(linear, input_shape=(6, 6, 2), num_classes=3, bounds=(-1.0, 2.0))
    assert classifier.predict(images).shape == (12, 3)
    np.testing.assert_array_equal(np.ravel(classifier.clip_values), [-1, 2])
    with pytest.raises(ValueError, match="Pass `input_shape`"):
        to_art(linear, num_classes=3)
    with pytest.raises(ValueError, match="Pass `num_classes`"):
        to_art(linear, input_shape=(6, 6, 2))
    with pytest.raises(TypeError, match="callable"):
        to_art(None, input_shape=(1,), num_classes=2)


def test_foolbox_finds_what_ours_finds(softmax_model, batch):
    foolbox = pytest.importorskip("foolbox")
    images, labels = batch
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    model = to_foolbox(softmax_model)
    _, theirs, _ = attack(model, tf.constant(images), tf.constant(labels), epsilons=EPSILON)
    ours = FGSM(epsilon=EPSILON)(softmax_model, images, labels)
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_foolbox_is_handed_logits_and_bounds(softmax_model, batch, monkeypatch):
    # Stands for the library where it is not installed; its constructor takes a callable and these.
    made = []

    def tensorflow_model(model, bounds, device=None):
        made.append((model(batch[0]), bounds, device))

    fake = types.ModuleType("foolbox")
    fake.TensorFlowModel = tensorflow_model
    monkeypatch.setitem(sys.modules, "foolbox", fake)
    to_foolbox(softmax_model, bounds=(0, 2), device="CPU:0")
    logits, bounds, device = made[0]
    assert (bounds, device) == ((0, 2), "CPU:0")
    np.testing.assert_allclose(tf.nn.softmax(logits), softmax_model(batch[0]), atol=1e-6)


@pytest.mark.parametrize(
    ("helper", "module", "package"),
    [
        (to_cleverhans, "cleverhans", "cleverhans"),
        (to_art, "art.estimators.classification", "adversarial-robustness-toolbox"),
        (to_foolbox, "foolbox", "foolbox"),
    ],
)
def test_a_missing_library_is_named_with_the_way_to_get_it(
    softmax_model, monkeypatch, helper, module, package
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        helper(softmax_model)
