# SPDX-License-Identifier: Apache-2.0
"""Curves over the strength of an attack, adversarial sets that are kept, pictures of them."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure

from tfmot_atmc import cli, models
from tfmot_atmc.attacks import FGSM, PGD, Attack, AutoAttack, Square
from tfmot_atmc.evaluation import (
    AdversarialSet,
    evaluate_robustness,
    plot_examples,
    robustness_curve,
)

# One input, class 1 above the middle: robust at radius e exactly where |x - 0.5| > e.
X = np.array([[0.9], [0.55], [0.45], [0.62], [0.1], [0.7]], np.float32)
Y = np.array([1, 1, 0, 1, 0, 0])


def middle(x):
    return tf.concat([0.5 - x, x - 0.5], axis=-1)


def curve(**options):
    return robustness_curve(middle, (X, Y), **{"verbose": 0, "checks": False, **options})


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1), name="pixels"),
            keras.layers.Flatten(),
            keras.layers.Dense(12, activation="tanh"),
            keras.layers.Dense(4),
        ],
        name="tiny",
    )


@pytest.fixture(scope="module")
def data(model):
    x = np.random.default_rng(0).uniform(size=(20, 4, 4, 1)).astype("float32")
    return x, model(x).numpy().argmax(axis=-1)


@pytest.fixture(scope="module")
def examples(model, data):
    return AdversarialSet.make(model, data, attack="fgsm", epsilon=0.3, batch_size=8)


def test_a_curve_over_epsilon_is_the_one_by_hand():
    found = curve(attack="fgsm", epsilons=[0.3, 0.0, 0.1, 0.1, 1.0])
    assert (found.over, found.attack, found.n) == ("epsilon", "FGSM", 6)
    assert found.values == [0.0, 0.1, 0.3, 1.0]
    assert found.accuracies == [5 / 6, 3 / 6, 2 / 6, 0.0]
    assert found.clean_accuracy == 5 / 6 and not found.warnings
    low, high = found.intervals[1]
    assert low < 0.5 < high


def test_a_step_size_grows_with_epsilon_and_a_curve_over_steps_levels_off():
    steady = PGD(epsilon=0.1, steps=4, step_size=0.025, random_start=False)
    assert curve(attack=steady, epsilons=[0.1, 0.3]).accuracies == [3 / 6, 2 / 6]
    short = PGD(epsilon=0.3, steps=1, step_size=0.07, random_start=False)
    found = curve(attack=short, steps=[5, 1, 2, 10])
    assert (found.over, found.values) == ("steps", [1.0, 2.0, 5.0, 10.0])
    assert found.accuracies == [3 / 6, 2 / 6, 2 / 6, 2 / 6]


def test_a_rise_is_told_and_the_checks_look_at_the_strongest_point_once():
    class Fickle(FGSM):
        def _perturb(self, problem, seed):
            return problem.x if self.epsilon > 0.2 else super()._perturb(problem, seed)

    (warning,) = curve(attack=Fickle(epsilon=0.1), epsilons=[0.1, 0.3]).warnings
    assert "rises from 50.0% at epsilon 0.1 to 83.3% at 0.3" in warning
    saturated = robustness_curve(
        lambda x: 1e6 * middle(x), (X, Y), attack="fgsm", epsilons=[0.01, 0.1], verbose=0
    )
    assert sum("gradient is exactly zero" in text for text in saturated.warnings) == 1


def test_ensembles_and_attacks_by_queries_have_curves_too(model, data):
    few = AutoAttack(epsilon=0.3, steps=3, queries=5)
    options = {"verbose": 0, "checks": False, "max_examples": 5}
    ensemble = robustness_curve(model, data, attack=few, epsilons=[0.0, 0.3], **options)
    assert ensemble.accuracies[0] == 1.0 > ensemble.accuracies[1]
    square = Square(epsilon=0.3, queries=1)
    assert robustness_curve(model, data, attack=square, steps=[2], **options).over == "queries"


def test_a_curve_is_saved_and_drawn(tmp_path):
    found = curve(attack="fgsm", epsilons=[0.0, 0.3])
    found.save(tmp_path / "curve.json")
    assert json.loads((tmp_path / "curve.json").read_text()) == found.to_dict()
    axes = found.plot().axes[0]
    assert axes.get_xlabel() == "epsilon (input units)" and len(axes.lines) == 2
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [500 / 6, 200 / 6])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attack": "fgsm"}, "either `epsilons=` or `steps=`"),
        ({"attack": "pgd", "epsilons": [0.1], "steps": [1]}, "either"),
        ({"attack": "pgd", "steps": [1]}, "needs its epsilon"),
        ({"attack": "pgd", "epsilons": []}, "finite values"),
        ({"attack": "pgd", "epsilons": [-0.1]}, "finite values"),
        ({"attack": FGSM(epsilon=0.1), "steps": [1]}, "no number of steps"),
        ({"attack": "wrm", "epsilons": [0.1]}, "no epsilon|epsilon"),
        ({"attack": "pgd", "epsilons": [0.1], "state": "x"}, "no argument `state`"),
    ],
)
def test_a_curve_of_nothing_is_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        curve(**options)


def test_a_set_replays_as_it_was_evaluated(model, data, examples):
    assert (examples.source, examples.attack["class_name"]) == ("tiny", "FGSM")
    assert np.abs(examples.adversarial - examples.clean).max() <= 0.3 + 1e-6
    report = examples.evaluate(model, batch_size=7)
    direct = evaluate_robustness(model, data, attacks=FGSM(epsilon=0.3), verbose=0)
    assert report.robust_accuracy == direct.robust_accuracy < 1
    (result,) = report.attacks
    assert result.name == "FGSM (replayed from tiny)" and result.attacked == 20
    assert "an attack on tiny itself is stronger" in report.warnings[0]
    with pytest.raises(TypeError, match="do not apply to an existing attack"):
        AdversarialSet.make(model, data, attack=FGSM(epsilon=0.1), epsilon=0.2)


def test_a_set_is_loaded_as_it_was_saved(tmp_path, examples, data):
    path = tmp_path / "set.npz"
    examples.save(path)
    loaded = AdversarialSet.load(path)
    for name in ("clean", "adversarial", "y"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(examples, name))
    assert (loaded.attack, loaded.source, loaded.seed) == (
        examples.attack,
        examples.source,
        examples.seed,
    )
    nested = AdversarialSet({"a": X}, {"a": X}, Y, examples.attack, "hand")
    nested.save(path)
    np.testing.assert_array_equal(AdversarialSet.load(path).clean["a"], X)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.npz"]


def test_files_that_are_no_sets_are_refused(tmp_path, examples):
    path = tmp_path / "set.npz"
    with pytest.raises(FileNotFoundError):
        AdversarialSet.load(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="set.npz is no adversarial set"):
        AdversarialSet.load(path)
    np.savez(path, x=X)
    with pytest.raises(ValueError, match="is no adversarial set.*about"):
        AdversarialSet.load(path)
    examples.save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="is no adversarial set"):
        AdversarialSet.load(path)
    with pytest.raises(ValueError, match="must end in .npz"):
        examples.save(tmp_path / "set.json")


def test_labels_that_are_no_class_indices_are_refused():
    for labels in (Y + 0.5, np.where(Y == 1, np.nan, Y)):
        with pytest.raises(ValueError, match="whole numbers"):
            evaluate_robustness(middle, (X, labels), attacks=FGSM(epsilon=0.1), verbose=0)
    whole = evaluate_robustness(middle, (X, Y * 1.0), attacks=FGSM(epsilon=0.1), verbose=0)
    assert whole.robust_accuracy == 3 / 6


def test_sets_that_do_not_fit_are_refused(model, data, examples):
    with pytest.raises(ValueError, match="does not take these inputs, float32 \\(1,\\)"):
        AdversarialSet(X, X, Y, {"class_name": "FGSM"}, "hand").evaluate(model)
    with pytest.raises(ValueError, match="Labels must be in"):
        examples.evaluate(lambda x: tf.reshape(x, (-1, 16))[:, :2])
    with pytest.raises(ValueError, match="same shapes"):
        AdversarialSet(X, X[:3], Y, {}, "hand")
    with pytest.raises(ValueError, match="one label for each input"):
        AdversarialSet(X, X, Y[:3], {}, "hand")
    with pytest.raises(ValueError, match="received no examples"):
        AdversarialSet.make(model, (data[0][:0], data[1][:0]), attack="fgsm", epsilon=0.1)

    class Cheat(Attack):
        def _perturb(self, problem, seed):
            return [leaf + 0.4 for leaf in problem.x]

    with pytest.raises(RuntimeError, match="Cheat left its ball"):
        AdversarialSet.make(model, data, attack=Cheat(epsilon=0.1))


def test_a_set_can_be_made_on_a_file_without_gradients(model, data, tmp_path):
    path = tmp_path / "tiny.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    made = AdversarialSet.make(path, data, attack=Square(epsilon=0.3, queries=10))
    assert made.source == "tiny.tflite" and made.evaluate(path).robust_accuracy < 1
    with pytest.raises(ValueError, match="tiny.tflite gives no gradients"):
        AdversarialSet.make(path, data, attack="fgsm", epsilon=0.1)


def test_examples_are_drawn_with_what_the_target_says(model, examples):
    figure = plot_examples(examples, model, count=3, class_names=list("abcd"))
    assert isinstance(figure, Figure) and len(figure.axes) == 9
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == [
        "clean",
        "adversarial",
        "difference",
    ]
    answers = model(examples.adversarial[:3]).numpy().argmax(axis=-1)
    for axes, answer, truth in zip(figure.axes[3:6], answers, examples.y, strict=False):
        assert axes.get_title() == "abcd"[answer]
        assert (axes.title.get_color() == "black") == (answer == truth)
    cubes = np.zeros((4, 3, 3, 2), "float32")
    with pytest.raises(ValueError, match="Only images.*and curves"):
        plot_examples(AdversarialSet(cubes, cubes, Y[:4], {"class_name": "FGSM"}, "hand"), middle)
    with pytest.raises(ValueError, match="count"):
        plot_examples(examples, model, count=0)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_vectors_and_signals_are_drawn_as_curves(channels):
    shape = (5, 40) if channels is None else (5, 40, channels)
    clean = np.random.default_rng(0).normal(size=shape).astype("float32")
    moved = clean + np.float32(0.5) * np.sign(clean)
    first = (slice(None), 0) if channels is None else (slice(None), 0, 0)

    def sign(x):
        return tf.stack([x[first], -x[first]], axis=-1)

    y = sign(clean).numpy().argmax(axis=-1)
    found = AdversarialSet(clean, moved, y, {"class_name": "FGSM"}, "hand")
    axes = plot_examples(found, sign, count=2).axes
    assert len(axes) == 6 and not axes[0].images
    assert [len(each.lines) for each in axes] == [channels or 1] * 6
    line = clean[0] if channels is None else clean[0, :, 0]
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), line)
    np.testing.assert_allclose(np.abs(axes[4].lines[0].get_ydata()), 0.5, atol=1e-6)
    assert axes[4].get_ylim() == pytest.approx((-0.55, 0.55), rel=1e-5)


def test_the_command_line_draws_a_picture(tmp_path, capsys):
    file = tmp_path / "model.keras"
    models.get("small_cnn", seed=0).save(file)
    arguments = ["--attack=fgsm", "--limit=4", "--epsilon=0.1", f"--picture={tmp_path}/drawn.png"]
    assert cli.main(["evaluate", str(file), *arguments]) == 0
    assert "worst case" in capsys.readouterr().out
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
