# SPDX-License-Identifier: Apache-2.0
"""Evaluation of what does not tell one class: several labels, numbers, images, several outputs."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmot_atmc as atmc
from tests.test_tasks import FORMS, X, keras_losses, two_heads
from tfmot_atmc.attacks import APGD, FGSM, PGD, Square
from tfmot_atmc.evaluation import RobustnessReport, robustness_curve
from tfmot_atmc.evaluation.data import batches
from tfmot_atmc.tasks import task_of

rng = np.random.default_rng(0)
layers = keras.layers
W = rng.normal(size=(6, 3)).astype("float32")
IMAGES = rng.random((20, 4, 4, 1)).astype("float32")


def evaluate(target, data, attack=None, **options):
    attack = PGD(epsilon=0.05, steps=5) if attack is None else attack
    options = {"verbose": 0, "checks": False} | options
    return atmc.evaluate_robustness(target, data, attacks=attack, **options)


def linear(last=None, loss=None, kernel=W):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(kernel.shape[1], activation=last)])
    model.layers[0].set_weights([kernel, np.zeros(kernel.shape[1], "float32")])
    if loss is not None:
        model.compile("sgd", loss)
    return model


DATA = rng.uniform(0.2, 0.8, (20, 6)).astype("float32")
MULTI = ((DATA @ W) + rng.normal(size=(20, 3)) * 0.3 > 0).astype("float32")


def test_of_several_labels_all_must_be_right_and_each_is_counted():
    model, attack = linear("sigmoid", "binary_crossentropy"), APGD(epsilon=0.15, steps=20)
    report = evaluate(model, (DATA, MULTI), attack, batch_size=7, checks=True)
    right = (DATA @ W > 0) == (MULTI > 0.5)
    assert report.goal == "labels" and not report.classes and report.robust_loss is None
    assert report.clean_accuracy == right.all(axis=1).mean()
    assert [found.clean for found in report.labels.values()] == right.sum(axis=0).tolist()
    assert all(found.n == 20 for found in report.labels.values())
    # Of a linear model what the ball holds is known, label by label.
    signs = np.where(MULTI > 0.5, 1, -1)
    held = (DATA @ W) * signs > 0.15 * np.abs(W).sum(axis=0)
    assert report.second_opinion["accuracy"] == held.all(axis=1).mean() < report.clean_accuracy
    assert held.all(axis=1).mean() <= report.robust_accuracy <= held.all(axis=1).mean() + 0.1
    results = report.labels.values()
    assert all(found.robust >= n for found, n in zip(results, held.sum(axis=0), strict=True))
    assert "all labels right" in str(report) and "Weakest label" in str(report)
    assert "with all of them right" in report.warnings[0] and len(report.warnings) == 1


def test_the_loss_of_numbers_under_attack_is_near_the_largest_of_the_ball():
    y = (DATA @ W + rng.normal(size=(20, 3)) * 0.1).astype("float32")
    report = evaluate(linear(loss="mae"), (DATA, y), APGD(epsilon=0.05, steps=40), batch_size=7)
    assert report.goal == "values" and np.isnan(report.robust_accuracy)
    assert report.clean_loss == pytest.approx(np.abs(DATA @ W - y).mean(), rel=1e-5)
    # The maximum of a convex function over a box is at a corner; all 64 are tried.
    corners = 0.05 * np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    losses = [np.abs((DATA + corner) @ W - y).mean(axis=1) for corner in corners]
    largest = np.max(losses, axis=0).mean()
    assert report.clean_loss < 0.9 * largest <= report.robust_loss <= largest * (1 + 1e-5)
    assert report.attacks[0].loss == report.robust_loss and report.attacks[0].broken == 0
    assert "mean loss" in str(report) and "%" not in str(report).split("Checks")[0]


@pytest.mark.parametrize("form", ["compressed", "function", "file"])
def test_all_that_can_be_evaluated_gives_the_same_figures(form, tmp_path):
    model = linear("sigmoid", "binary_crossentropy")
    want = evaluate(model, (DATA, MULTI))
    bare, source = linear("sigmoid"), None
    target = atmc.compress(bare, "al0", ratio=1.0) if form == "compressed" else bare.__call__
    if form == "file":
        source, target = model, str(tmp_path / "model.tflite")
        content = tf.lite.TFLiteConverter.from_keras_model(bare).convert()
        (tmp_path / "model.tflite").write_bytes(content)
    loss = None if form == "file" else "binary_crossentropy"  # else that of the source
    found = evaluate(target, (DATA, MULTI), loss=loss, source=source, checks=form == "file")
    assert found.goal == "labels"
    assert (found.clean_accuracy, found.robust_accuracy) == (
        want.clean_accuracy,
        want.robust_accuracy,
    )
    assert found.labels == want.labels
    if form == "file":
        assert found.checks["source is the target's twin"] == "passed"


@pytest.mark.parametrize("name", FORMS)
def test_the_loss_of_every_form_is_reported_and_raised_or_classes_are_told(name):
    loss, y, predict, kind = FORMS[name]
    report = evaluate(predict, (X, y), FGSM(epsilon=0.002), loss=loss, batch_size=2)
    task = task_of(loss, predict(tf.constant(X)), tf.convert_to_tensor(y))
    if kind in ("classes", "binary") or task.correct(y, predict(tf.constant(X))) is not None:
        assert report.goal == ("labels" if kind == "labels" else "classes")
        assert report.clean_accuracy >= report.robust_accuracy >= 0
    if report.goal == "values":
        assert report.clean_loss == pytest.approx(
            keras_losses(loss, y, predict(tf.constant(X))).mean(), rel=1e-4, abs=1e-6
        )
        assert report.robust_loss > report.clean_loss


def test_several_outputs_are_evaluated_by_their_weighted_sum():
    inputs = keras.Input((6,))
    heads = {"cls": layers.Dense(3, name="cls")(inputs), "reg": layers.Dense(1, name="reg")(inputs)}
    model = keras.Model(inputs, heads)
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", {"cls": sparse, "reg": "mse"}, loss_weights={"cls": 2.0, "reg": 0.5})
    y = {"cls": MULTI.argmax(axis=1), "reg": MULTI[:, :1]}
    want = model.evaluate(DATA, y, verbose=0, return_dict=True)["loss"]
    for data in ((DATA, y), tf.data.Dataset.from_tensor_slices((DATA, y)).batch(6)):
        report = evaluate(model, data, checks=True)
        assert report.goal == "values" and report.n == 20
        assert report.clean_loss == pytest.approx(want, rel=1e-5)
        assert report.robust_loss > 1.01 * want and report.second_opinion["loss"] > want
    with pytest.raises(ValueError, match="2 outputs and no loss"):
        evaluate(two_heads(), (DATA, y))


def test_an_autoencoder_and_a_segmentation_are_evaluated():
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(1, 3, padding="same")])
    model.compile("sgd", "mse")
    report = evaluate(model, (IMAGES, IMAGES), checks=True)
    assert report.goal == "values" and report.robust_loss > report.clean_loss > 0
    assert report.checks["attacks take enough steps"] and not report.classes
    maps = rng.integers(0, 3, (20, 4, 4))
    pixels = keras.Sequential([keras.Input((4, 4, 1)), layers.Conv2D(3, 3, padding="same")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    report = evaluate(pixels, (IMAGES, maps), loss=loss)
    assert report.clean_loss == pytest.approx(float(loss(maps, pixels(IMAGES))), rel=1e-5)


def test_what_cannot_be_attacked_is_refused_with_the_reason_and_a_way_out():
    numbers = DATA @ W
    for attack, said in (
        (Square(epsilon=0.1), "looks at classes.*Use PGD"),
        (atmc.attacks.AutoAttack(epsilon=0.1), "looks at classes"),
        (PGD(epsilon=0.1, loss=lambda y, z: z[:, 0]), "a loss of its own"),
    ):
        with pytest.raises(ValueError, match=said):
            evaluate(linear(loss="mse"), (DATA, numbers), attack)
    with pytest.raises(ValueError, match="with each other"):
        evaluate(linear(), (DATA, numbers), loss=keras.losses.Circle())
    with pytest.raises(ValueError, match="one value for the whole batch"):
        evaluate(linear(), (DATA, numbers), loss=lambda a, b: tf.reduce_mean(a - b))
    for labels in (numbers, numbers[:, 0], MULTI, IMAGES):
        with pytest.raises(ValueError, match="`?loss=.*evaluate_robustness"):
            evaluate(linear(), (DATA, labels))
    with pytest.raises(ValueError, match="has a loss only"):
        robustness_curve(
            linear(loss="mse"), (DATA, numbers), attack="fgsm", epsilons=[0.1], verbose=0
        )


def test_logits_are_not_taken_for_probabilities():
    for kernel, y in ((W, MULTI), (W[:, :1], MULTI[:, 0])):
        loss = keras.losses.BinaryCrossentropy()
        with pytest.raises(ValueError, match="of probabilities.*from_logits=True"):
            evaluate(linear(loss=loss, kernel=kernel), (DATA, y))
        right = keras.losses.BinaryCrossentropy(from_logits=True)
        report = evaluate(linear(loss=loss, kernel=kernel), (DATA, y), loss=right)
        want = ((DATA @ kernel > 0) == (y.reshape(20, -1) > 0.5)).all(axis=1).mean()
        assert report.clean_accuracy == want
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(linear(), (DATA, MULTI.argmax(axis=1)), max_examples=-1)


def test_a_report_of_losses_is_saved_resumed_and_loaded(tmp_path):
    model, data = linear(loss="mse"), (DATA, DATA @ W + 0.1)
    whole = evaluate(model, data, batch_size=5)
    state, path = tmp_path / "state.json", tmp_path / "report.json"
    left = [9]

    def target(x):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return model(x)

    with pytest.raises(KeyboardInterrupt):
        evaluate(target, data, batch_size=5, loss="mse", state=state)
    assert 0 < len(json.loads(state.read_text())["counts"]["worst"]) < 20
    left[0] = 1000
    again = evaluate(target, data, batch_size=5, loss="mse", state=state)
    assert again.robust_loss == pytest.approx(whole.robust_loss, rel=1e-6)
    assert again.attacks[0].loss == again.robust_loss and not state.exists()
    whole.save(path)
    loaded = RobustnessReport.load(path)
    assert "NaN" not in path.read_text() and np.isnan(loaded.clean_accuracy)
    assert (loaded.goal, loaded.robust_loss) == ("values", whole.robust_loss)
    assert str(loaded) == str(whole)


def test_labels_that_are_plainly_classes_stay_classes_whatever_the_loss():
    one_hot = np.eye(3, dtype="float32")[(DATA @ W).argmax(axis=1)]
    for loss, y in (("mse", one_hot), ("kl_divergence", one_hot), (None, one_hot)):
        report = evaluate(linear(loss=loss), (DATA, y))
        assert report.goal == "classes" and report.clean_accuracy == 1.0
    # Several columns of binary cross-entropy are labels, also where one of them is set.
    model = linear("sigmoid", "binary_crossentropy")
    assert evaluate(model, (DATA, one_hot)).goal == "labels"


def test_a_dataset_without_an_end_is_refused_or_cut(monkeypatch):
    from tfmot_atmc.evaluation import data as module

    def endless():
        while True:
            yield DATA[:5], np.zeros(5, "int64")

    kinds = (tf.TensorSpec((5, 6)), tf.TensorSpec((5,), tf.int64))
    dataset = tf.data.Dataset.from_generator(endless, output_signature=kinds)
    monkeypatch.setattr(module, "_MOST", 1000)
    with pytest.raises(ValueError, match="may have none.*max_examples"):
        evaluate(linear(), dataset)
    assert evaluate(linear(), dataset, max_examples=12).n == 12
    with pytest.raises(ValueError, match="has no end"):
        evaluate(linear(), tf.data.Dataset.from_tensors((DATA, MULTI)).repeat())
    few = dataset.take(3)  # has an end, and does not say so
    assert few.cardinality() < 0 and evaluate(linear(), few).n == 15
    assert [len(y) for _, y in batches(few, 5, None)] == [5, 5, 5]
    with pytest.raises(ValueError, match="pair"):
        evaluate(linear(), endless())
