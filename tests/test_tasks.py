# SPDX-License-Identifier: Apache-2.0
"""For any Keras loss and label form the attack raises that loss, or is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmot_atmc as atmc
from tfmot_atmc.attacks import APGD, FGSM, PGD, Square
from tfmot_atmc.tasks import class_labels, example_losses, task_of

L = keras.losses
SCE, CCE = L.SparseCategoricalCrossentropy, L.CategoricalCrossentropy
BCE = L.BinaryCrossentropy
N, C = 5, 3  # a batch that no round number divides
rng = np.random.default_rng(0)
X = rng.uniform(0.2, 0.8, (N, 6)).astype("float32")
W = rng.normal(size=(6, 48)).astype("float32")

CLASSES = rng.integers(0, C, N)
ONE_HOT = np.eye(C, dtype="float32")[CLASSES]
SOFT = rng.dirichlet(np.ones(C), N).astype("float32")
SMOOTH = (0.9 * ONE_HOT + 0.1 / C).astype("float32")
MULTI = (rng.random((N, C)) > 0.5).astype("float32")
NUMBERS = rng.uniform(0.5, 1.5, (N, C)).astype("float32")
SIGNS = np.where(MULTI > 0, 1, -1).astype("float32")
IMAGES = rng.random((N, 4, 4, 1)).astype("float32")
MAPS = rng.integers(0, C, (N, 4, 4))
WORDS = rng.integers(1, C, (N, 2))


def net(*shape, act=None):
    """A linear model to outputs of a shape."""
    size = int(np.prod(shape, dtype=int))

    def predict(x):
        outputs = tf.reshape(x @ W[:, :size], [-1, *shape])
        return outputs if act is None else keras.activations.get(act)(outputs)

    return predict


def own(y, p):
    return keras.losses.sparse_categorical_crossentropy(y, p, from_logits=True)


class Focal(L.Loss):
    def call(self, y_true, y_pred):
        value = own(y_true, y_pred)
        return (1 - keras.ops.exp(-value)) ** 2 * value


# Name: loss, labels, model, and the kind that they must be read as.
FORMS = {
    "SparseCategoricalCrossentropy": (SCE(True), CLASSES, net(C), "classes"),
    "sparse, column": (SCE(True), CLASSES[:, None], net(C), "classes"),
    "sparse, floats": (SCE(True), CLASSES * 1.0, net(C), "classes"),
    "sparse, softmax": (
        "sparse_categorical_crossentropy",
        CLASSES,
        net(C, act="softmax"),
        "classes",
    ),
    "sparse, ignored": (SCE(True, ignore_class=0), CLASSES, net(C), "values"),
    "sparse, by shape": ("crossentropy", CLASSES, net(C, act="softmax"), "classes"),
    "segmentation": (SCE(True), MAPS, net(4, 4, C), "values"),
    "segmentation, softmax": (SCE(), MAPS, net(4, 4, C, act="softmax"), "values"),
    "sequence": (SCE(True), WORDS, net(2, C), "values"),
    "CategoricalCrossentropy": (CCE(True), ONE_HOT, net(C), "classes"),
    "smoothed rows": (CCE(True), SMOOTH, net(C), "classes"),
    "mixed rows": (CCE(True), SOFT, net(C), "classes"),
    "smoothing loss": (CCE(True, label_smoothing=0.4), ONE_HOT, net(C), "classes"),
    "pictures of classes": (CCE(True), np.eye(C)[MAPS], net(4, 4, C), "values"),
    "BinaryCrossentropy": ("binary_crossentropy", CLASSES % 2, net(1, act="sigmoid"), "binary"),
    "binary, logits": (BCE(True), (CLASSES % 2)[:, None], net(1), "binary"),
    "binary, soft": (BCE(True), SOFT[:, :1], net(1), "binary"),
    "binary, smoothing": (BCE(True, label_smoothing=0.3), CLASSES % 2, net(1), "binary"),
    "multi-label": ("binary_crossentropy", MULTI, net(C, act="sigmoid"), "labels"),
    "multi-label, logits": (BCE(True), MULTI, net(C), "labels"),
    "two labels": ("binary_crossentropy", MULTI[:, :2], net(2, act="sigmoid"), "labels"),
    "masks": (BCE(True), IMAGES > 0.5, net(4, 4, 1), "values"),
    "BinaryFocalCrossentropy": (
        L.BinaryFocalCrossentropy(),
        MULTI,
        net(C, act="sigmoid"),
        "values",
    ),
    "CategoricalFocalCrossentropy": (
        L.CategoricalFocalCrossentropy(),
        ONE_HOT,
        net(C, act="softmax"),
        "values",
    ),
    "own function": (own, CLASSES, net(C), "values"),
    "own loss": (Focal(), CLASSES, net(C), "values"),
    "MeanSquaredError": ("mse", NUMBERS, net(C), "values"),
    "one number": ("mse", NUMBERS[:, 0], net(1), "values"),
    "autoencoder": ("mse", IMAGES, net(4, 4, 1, act="sigmoid"), "values"),
    "autoencoder, binary": ("binary_crossentropy", IMAGES, net(4, 4, 1, act="sigmoid"), "values"),
    "MeanAbsoluteError": ("mae", NUMBERS, net(C), "values"),
    "MeanAbsolutePercentageError": (L.MeanAbsolutePercentageError(), NUMBERS, net(C), "values"),
    "MeanSquaredLogarithmicError": (
        L.MeanSquaredLogarithmicError(),
        NUMBERS,
        net(C, act="softplus"),
        "values",
    ),
    "Huber": (L.Huber(), NUMBERS, net(C), "values"),
    "LogCosh": (L.LogCosh(), NUMBERS, net(C), "values"),
    "CosineSimilarity": (L.CosineSimilarity(), NUMBERS, net(C), "values"),
    "Poisson": (L.Poisson(), NUMBERS, net(C, act="softplus"), "values"),
    "KLDivergence": (L.KLDivergence(), SOFT, net(C, act="softmax"), "values"),
    "Hinge": (L.Hinge(), SIGNS, net(C, act="tanh"), "values"),
    "SquaredHinge": (L.SquaredHinge(), SIGNS, net(C, act="tanh"), "values"),
    "CategoricalHinge": (L.CategoricalHinge(), ONE_HOT, net(C), "values"),
    "Dice": (L.Dice(axis=(1, 2, 3)), IMAGES, net(4, 4, 1, act="sigmoid"), "values"),
    "Tversky": (L.Tversky(axis=(1, 2, 3)), IMAGES, net(4, 4, 1, act="sigmoid"), "values"),
    "CTC": (L.CTC(), WORDS, net(6, C), "values"),
}
if hasattr(L, "CategoricalGeneralizedCrossEntropy"):
    FORMS["CategoricalGeneralizedCrossEntropy"] = (
        L.CategoricalGeneralizedCrossEntropy(),
        CLASSES,
        net(C, act="softmax"),
        "values",
    )


def keras_losses(loss, y, outputs):
    """Keras's own figure for each example alone."""
    if loss == "crossentropy":
        loss = "sparse_categorical_crossentropy"
    loss = keras.losses.get(loss)
    if not isinstance(loss, L.Loss):
        function = loss
        loss = lambda a, b: tf.reduce_mean(function(a, b))  # noqa: E731
    outputs = tf.convert_to_tensor(np.asarray(outputs))
    if y.ndim == 1 and outputs.shape[-1] == 1:
        y = y[:, None]
    return np.array([float(loss(y[i : i + 1], outputs[i : i + 1])) for i in range(len(y))])


def attacked(loss, y, predict, attack):
    task = task_of(loss, predict(tf.constant(X)), tf.convert_to_tensor(y))
    aimed, target, labels = task.under(attack, predict, tf.convert_to_tensor(y))
    return task, aimed(target, X, labels)


@pytest.mark.parametrize("name", FORMS)
def test_an_attack_raises_the_compiled_loss_of_every_example(name):
    loss, y, predict, kind = FORMS[name]
    task, adversarial = attacked(loss, y, predict, FGSM(epsilon=0.002))
    before = keras_losses(loss, y, predict(tf.constant(X)))
    after = keras_losses(loss, y, predict(adversarial))
    assert task.kind == kind
    assert np.abs(adversarial - X).max() <= 0.002 + 1e-7
    slack = 1e-5 * np.abs(before) + 1e-6
    assert (after >= before - slack).all(), (before, after)
    ignored = name in ("sparse, ignored", "Hinge", "SquaredHinge", "CategoricalHinge")
    assert (after > before).all() or (ignored and after.sum() > before.sum())


def test_every_loss_of_keras_is_tried_or_refused():
    known = {
        name
        for name in dir(L)
        if isinstance(getattr(L, name), type) and issubclass(getattr(L, name), L.Loss)
    }
    assert known - {"Loss", "Circle"} <= set(FORMS)


@pytest.mark.parametrize(
    ("loss", "y", "predict", "said"),
    [
        (L.Dice(), IMAGES, net(4, 4, 1, act="sigmoid"), "one value for the whole batch"),
        (lambda a, b: tf.reduce_mean(a - b), NUMBERS, net(C), "one value for the whole batch"),
        (lambda a, b: tf.reduce_mean(a - b, axis=0), NUMBERS, net(C), "one value an example"),
        (L.Circle(), CLASSES, net(C), "with each other"),
        (None, CLASSES, net(C), "no loss here"),
    ],
)
def test_a_loss_without_a_value_for_each_example_is_refused(loss, y, predict, said):
    with pytest.raises(ValueError, match=said):
        attacked(loss, y, predict, FGSM(epsilon=0.01))


def test_an_attack_that_needs_classes_is_refused_where_there_are_none():
    for attack in (Square(epsilon=0.1), APGD(epsilon=0.1, objective="dlr")):
        with pytest.raises(ValueError, match="looks at classes"):
            attacked("mse", NUMBERS, net(C), attack)
    _, adversarial = attacked("mse", NUMBERS, net(C), APGD(epsilon=0.05, steps=5))
    assert keras_losses("mse", NUMBERS, net(C)(adversarial)).mean() > 0


def test_a_targeted_attack_on_true_labels_is_refused():
    targeted = PGD(epsilon=0.1, targeted=True)
    with pytest.raises(ValueError, match="classes wanted"):
        attacked("mse", NUMBERS, net(C), targeted)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="targeted=False"):
        atmc.compress(model, "al0", ratio=0.5, attack=targeted)


def test_success_on_several_labels_is_any_of_them_wrong():
    y = np.array([[1.0, 0.0], [1.0, 0.0]], "float32")
    outputs = tf.constant([[0.1, 0.1], [0.1, -0.1]])
    task = task_of(BCE(True), outputs, tf.constant(y))
    aimed, target, labels = task.under(PGD(epsilon=0.1), lambda x: outputs, tf.constant(y))
    rows = target(X[:2])
    assert aimed.loss.wrong(labels, rows).numpy().tolist() == [True, False]
    assert task.correct(tf.constant(y), outputs).numpy().tolist() == [0.0, 1.0]


def test_right_answers_are_counted_as_the_labels_say():
    logits = tf.constant([[2.0, 1.0], [0.0, 1.0]])
    sparse = task_of(SCE(True), logits, tf.constant([0, 0]))
    assert sparse.correct(tf.constant([0, 0]), logits).numpy().tolist() == [1.0, 0.0]
    p, soft = tf.constant([[0.9], [0.2]]), tf.constant([[0.8], [0.7]])
    binary = task_of("binary_crossentropy", p, soft)
    assert binary.correct(soft, p).numpy().tolist() == [1.0, 0.0]
    numbers = task_of("mse", logits, logits)
    assert numbers.correct(logits, logits) is None
    focal = task_of(own, logits, tf.constant([0, 0]))
    assert focal.correct(tf.constant([0, 0]), logits).numpy().tolist() == [1.0, 0.0]


def test_labels_of_an_evaluation_are_classes_or_are_refused():
    assert class_labels(SMOOTH).tolist() == CLASSES.tolist()
    assert class_labels([[0.3], [0.9]], columns=1).tolist() == [0, 1]
    assert class_labels([[2.0], [1.0]]).tolist() == [2, 1]
    for labels, said in (
        (np.array([[1.0, 1.0], [0.0, 1.0]]), "multi-label"),
        (NUMBERS, "one-hot or probabilities"),
        (np.array([[0.5, 0.5]]), "equal largest"),
        (np.array([0.5, 1.2]), "whole numbers"),
        (MAPS, "one class an example"),
    ):
        with pytest.raises(ValueError, match=said):
            class_labels(labels)


def two_heads(as_dict=False):
    def predict(x):
        heads = {"cls": x @ W[:, :C], "reg": x @ W[:, C : C + 1]}
        return heads if as_dict else list(heads.values())

    return predict


def test_several_outputs_are_attacked_by_their_weighted_sum():
    y = [tf.constant(CLASSES), tf.constant(NUMBERS[:, :1])]
    sparse = SCE(True)
    named = {"cls": y[0], "reg": y[1]}
    for loss, labels, predict, names in (
        ([sparse, "mse"], y, two_heads(), ()),
        ({"cls": sparse, "reg": "mse"}, named, two_heads(), ("cls", "reg")),
        ({"cls": sparse, "reg": "mse"}, named, two_heads(as_dict=True), ()),
    ):
        weights = {"cls": 2.0, "reg": 0.5} if isinstance(loss, dict) else [2.0, 0.5]
        task = task_of(loss, predict(tf.constant(X)), labels, names=names, weights=weights)
        aimed, target, rows = task.under(FGSM(epsilon=0.002), predict, labels)
        adversarial = aimed(target, X, rows)
        cls, reg = two_heads()(tf.constant(X))
        want = 2 * keras_losses(sparse, CLASSES, cls) + 0.5 * keras_losses(
            "mse", NUMBERS[:, :1], reg
        )
        np.testing.assert_allclose(aimed.loss(rows, target(tf.constant(X))), want, rtol=1e-5)
        cls, reg = two_heads()(tf.constant(adversarial))
        more = 2 * keras_losses(sparse, CLASSES, cls) + 0.5 * keras_losses(
            "mse", NUMBERS[:, :1], reg
        )
        assert (more > want).all()
        assert task.correct(labels, predict(tf.constant(X))) is None


def test_an_output_without_a_loss_is_left_alone():
    predict = two_heads()
    y = [tf.constant(CLASSES), None]
    task = task_of([SCE(True), None], predict(tf.constant(X)), y[:1])
    assert [part.output for part in task.parts] == [0]
    with pytest.raises(ValueError, match="names the outputs"):
        task_of({"other": "mse", "x": "mse"}, predict(tf.constant(X)), y, names=("cls", "reg"))


def test_losses_of_examples_are_those_of_keras():
    loss = L.Huber()
    values = example_losses(loss, tf.constant(NUMBERS), net(C)(tf.constant(X)))
    np.testing.assert_allclose(
        values, keras_losses(loss, NUMBERS, net(C)(tf.constant(X))), rtol=1e-6
    )
