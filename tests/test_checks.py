# SPDX-License-Identifier: Apache-2.0
"""Honest evaluation: fake robustness is named, ensembles run in parts, killed runs resume."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmot_atmc.attacks import (
    APGD,
    APGDT,
    BIM,
    FGSM,
    MIFGSM,
    PGD,
    RFGSM,
    TRADES,
    WRM,
    AutoAttack,
    Square,
)
from tfmot_atmc.evaluation import checks, evaluate_robustness
from tfmot_atmc.evaluation.sample import take_sample
from tfmot_atmc.evaluation.targets import as_target

EPSILON = 0.3


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
    x = np.random.default_rng(0).uniform(size=(40, 4, 4, 1)).astype("float32")
    return x, model(x).numpy().argmax(axis=-1)


def tiny_autoattack(**options):
    return AutoAttack(epsilon=EPSILON, steps=10, queries=40, **options)


def evaluate(target, data, attacks, **options):
    return evaluate_robustness(target, data, attacks=attacks, verbose=0, **options)


def test_a_sound_evaluation_passes_every_check(model, data):
    report = evaluate(model, data, [PGD(epsilon=EPSILON, steps=40, step_size=0.05)])
    assert report.robust_accuracy < 0.5 and not report.warnings
    assert set(report.checks.values()) == {"passed"} and len(report.checks) == 15
    assert not evaluate(model, data, FGSM(epsilon=EPSILON), checks=False).checks


def test_saturated_logits_fool_pgd_and_not_autoattack_and_the_report_says_so(model, data):
    masked = lambda x: model(x) * 1e4  # noqa: E731
    attack = PGD(epsilon=EPSILON, steps=10, random_start=False)
    fooled = evaluate(masked, data, attack)
    honest = evaluate(model, data, attack)
    assert fooled.robust_accuracy > honest.robust_accuracy + 0.3
    assert "gradients are masked" in fooled.checks["gradients are not zero"]
    assert "allows any image" in fooled.checks["unbounded attacks succeed"]
    both = evaluate(masked, data, [attack, tiny_autoattack()])
    assert both.robust_accuracy <= honest.robust_accuracy + 0.05
    assert [result.name for result in both.attacks[1:]] == [
        f"AutoAttack-10: {name}" for name in ("apgd-ce", "apgd-t", "fab-t", "square")
    ]


def test_a_step_in_front_of_the_model_is_flagged_and_square_sees_through_it(model, data):
    @tf.custom_gradient
    def quantised(x):
        return tf.round(x * 4) / 4, tf.zeros_like  # a derivative, and it is zero

    stepped = lambda x: model(quantised(x))  # noqa: E731
    x = np.round(data[0] * 4) / 4
    clean = x, model(x).numpy().argmax(axis=-1)
    report = evaluate(
        stepped, clean, [PGD(epsilon=EPSILON, steps=5), Square(epsilon=EPSILON, queries=80)]
    )
    assert report.attacks[0].accuracy > report.attacks[1].accuracy + 0.3
    assert "zero for 100.0%" in report.checks["gradients are not zero"]
    assert "Square, which sees outputs only" in report.checks["gradients beat outputs alone"]
    with pytest.raises(ValueError, match="give attacks that need no gradients, such as Square"):
        evaluate(lambda x: model(tf.round(x)), clean, FGSM(epsilon=0.1))
    alone = evaluate(lambda x: model(tf.round(x)), clean, Square(epsilon=0.5, queries=20))
    assert alone.robust_accuracy < 1
    for name in ("outputs are logits", "gradients are not zero", "gradients beat outputs alone"):
        assert alone.checks[name].startswith("not run: no ")
    assert alone.checks["no class is given up"] == alone.checks["outputs are deterministic"]
    assert alone.checks["outputs are deterministic"] == "passed"


def test_what_outputs_alone_break_is_compared_with_every_attack_that_saw_it():
    attacks = {"fgsm": FGSM(epsilon=0.1), "square": Square(epsilon=0.1), "pgd": PGD(epsilon=0.1)}
    broken = {
        "fgsm": np.array([True, False, False, False]),
        "square": np.array([True, True, True, False]),
        "pgd": np.array([False, True, False, True]),
    }
    apart = checks.beyond_gradients(broken, attacks, drop_broken=False)
    assert {name: mask.tolist() for name, mask in apart.items()} == {
        "square": [False, False, True, False]
    }
    # Withheld from PGD, which comes later, the second one tells nothing about gradients.
    broken |= {"square": np.array([False, True, True, False]), "pgd": np.array([False] * 4)}
    after = checks.beyond_gradients(broken, attacks, drop_broken=True)
    assert after["square"].tolist() == [False, True, True, False]
    first = {"square": attacks["square"], "pgd": attacks["pgd"]}
    assert checks.beyond_gradients(broken, first, drop_broken=True) == {}
    # The most that was seen of honest networks is a twentieth.
    assert checks.black_box_stronger({"square": 50}, 1000) is None
    assert "gradients mislead" in checks.black_box_stronger({"square": 51}, 1000)
    transfer = checks.black_box_stronger({"square": 51}, 1000, source="twin")
    assert "transferred from twin did not: the two differ" in transfer


def test_overlap_of_attacks_that_get_all_examples_is_no_sign_of_bad_gradients(model, data):
    name = "gradients beat outputs alone"
    both = [PGD(epsilon=EPSILON, steps=20, step_size=0.05), Square(epsilon=EPSILON, queries=60)]
    honest = evaluate(model, data, both, drop_broken=False)
    assert honest.attacks[1].broken > 5  # far more than a share of 0.002, all broken by PGD too
    assert honest.checks[name] == "passed"
    other = keras.models.clone_model(model)  # new weights: what is made on it transfers badly
    apart = evaluate(model, data, both[::-1], drop_broken=False, source=other)
    assert "transferred from tiny did not" in apart.checks[name]


@pytest.fixture(scope="module")
def sample(model, data):
    target = as_target(model)
    return take_sample(target, target, *data, np.ones(40, bool))


def test_too_few_steps_are_told_of_every_attack_that_climbs(sample):
    few = {"epsilon": EPSILON, "steps": 4, "step_size": 0.01}
    short = {kind.__name__: kind(**few) for kind in (BIM, MIFGSM, TRADES)}
    said = checks.run_checks(sample, short)
    for name in short:
        assert f"{name} has not converged: with twice" in said["attacks take enough steps"]
    # Beside a longer attack of its kind a short one does no harm.
    enough = {"short": BIM(**few), "long": PGD(epsilon=EPSILON, steps=60, step_size=0.02)}
    assert checks.run_checks(sample, enough)["attacks take enough steps"] == "passed"
    single = {"fgsm": FGSM(epsilon=0.1), "fastat": RFGSM(epsilon=0.1)}
    assert "attacks take enough steps" not in checks.run_checks(sample, single)


def test_auto_pgd_that_ends_on_its_way_is_told():
    # The way to the one wrong corner is a bent ridge: each step along it is short.
    def ridge(x):
        a, b = x[:, 0], x[:, 1]
        height = a - 3.0 * tf.square(b - tf.square(a)) - 0.8
        rest = tf.fill(tf.shape(a), -90.0)
        return tf.stack([-10 * height, 10 * height, rest, rest - 10], axis=-1)

    x = np.random.default_rng(0).uniform(0.0, 0.1, (32, 2)).astype("float32")
    target = as_target(ridge)
    sample = take_sample(target, target, x, np.zeros(32, "int64"), np.ones(32, bool))
    for kind in (APGD, APGDT):
        short, long = (kind(epsilon=1.0, steps=steps) for steps in (4, 60))
        assert "apgd has not converged" in checks.steps_too_few(sample, "apgd", short)
        assert checks.steps_too_few(sample, "apgd", long) is None
    parts = {"apgd-ce": long, "apgd-t": APGDT(epsilon=1.0, steps=4), "apgd": short}
    assert checks.run_checks(sample, parts)["attacks take enough steps"] == "passed"


def test_longer_attacks_keep_their_step_and_are_cheap():
    kurakin = PGD(epsilon=76 / 255, steps=16, rule="kurakin")
    longer = kurakin.lengthened(2)
    assert longer.steps == 32 and longer.unroll is False
    assert longer.step_size == kurakin.step_size == pytest.approx(5 / 255)
    momentum = MIFGSM(epsilon=0.2, steps=4, decay=0.5).lengthened(3)
    assert (momentum.steps, float(momentum.step_size), momentum.decay) == (12, 0.05, 0.5)
    targeted = APGDT(epsilon=0.1, steps=10).lengthened(2)
    assert (targeted.steps, targeted.num_targets) == (20, 1)
    assert WRM(steps=3).lengthened(2).steps == 6
    for other in (FGSM(epsilon=0.1), Square(epsilon=0.1), APGD(epsilon=0.1, eot=2)):
        assert other.lengthened(2) is None


def test_random_outputs_and_outputs_that_are_not_finite_are_named(model, data):
    noisy = lambda x: model(x) + tf.random.normal((1, 4))  # noqa: E731
    report = evaluate(noisy, data, FGSM(epsilon=0.1))
    assert "is random" in report.checks["outputs are deterministic"]
    x, y = data
    broken = lambda v: tf.where(v[:, 0, :, 0] > 0.9, np.nan, model(v))  # noqa: E731
    report = evaluate(broken, data, FGSM(epsilon=0.05))
    assert report.clean_accuracy < 1
    assert "NaN or infinity" in report.checks["outputs are finite"]


def test_ensembles_run_in_parts_each_on_what_is_left(model, data):
    report = evaluate(model, data, tiny_autoattack())
    assert [result.name for result in report.attacks] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    left = report.n
    for result in report.attacks:
        assert result.attacked == left
        left -= result.broken
    assert left == round(report.robust_accuracy * report.n)
    named = evaluate(model, data, "autoattack", epsilon=0.0)
    assert named.robust_accuracy == named.clean_accuracy == 1.0


def test_l2_attacks_are_held_to_their_ball(model, data):
    report = evaluate(model, data, APGD(epsilon=0.8, norm="l2", steps=10))
    assert report.robust_accuracy < 1

    class Cheat(APGD):
        def _perturb(self, problem, seed):
            return [leaf + 0.5 for leaf in problem.x]

    with pytest.raises(RuntimeError, match="left its ball: an example moved by 2"):
        evaluate(model, data, Cheat(epsilon=0.8, norm="l2", bounds=None))


class Interrupted(Exception):
    pass


def test_an_interrupted_evaluation_resumes_to_the_same_report(model, data, tmp_path):
    attacks = {"pgd": PGD(epsilon=EPSILON, steps=3), "square": Square(epsilon=EPSILON, queries=30)}
    options = {"batch_size": 10, "state": tmp_path / "state.json"}
    whole = evaluate(model, data, attacks, batch_size=10)
    calls = []

    def dataset(last):
        for start in range(0, 40, 10):
            calls.append(start)
            if start == last:
                raise Interrupted
            yield data[0][start : start + 10], data[1][start : start + 10]

    spec = (tf.TensorSpec((None, 4, 4, 1)), tf.TensorSpec((None,), tf.int64))
    broken = tf.data.Dataset.from_generator(lambda: dataset(20), output_signature=spec)
    with pytest.raises(tf.errors.OpError):
        evaluate(model, broken, attacks, **options)
    assert json.loads((tmp_path / "state.json").read_text())["counts"]["n"] == 20
    with pytest.raises(ValueError, match="state of another evaluation"):
        evaluate(model, data, FGSM(epsilon=0.1), **options)
    again = evaluate(model, data, attacks, **options)
    assert again == whole
    assert not (tmp_path / "state.json").exists()


def test_a_file_is_attacked_itself_without_gradients_and_by_transfer(model, data, tmp_path):
    path = tmp_path / "tiny.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    square = Square(epsilon=EPSILON, queries=60)
    alone = evaluate(str(path), data, square)
    assert alone.attacks[0].name == "Square (on the file itself)"
    assert alone.robust_accuracy == evaluate(model, data, square).robust_accuracy < 1
    both = evaluate(str(path), data, [PGD(epsilon=EPSILON, steps=5), square], source=model)
    assert [result.name for result in both.attacks] == [
        "PGD-5 (transfer from tiny)",
        "Square (on the file itself)",
    ]
    assert both.robust_accuracy <= alone.robust_accuracy
    with pytest.raises(ValueError, match="Pass `source=`"):
        evaluate(str(path), data, [square, FGSM(epsilon=0.1)])


def test_odd_data_are_refused_or_give_the_obvious_result(model, data):
    x, y = data
    one = evaluate(model, (x[:1], y[:1]), FGSM(epsilon=0.0))
    assert one.n == 1 and one.robust_accuracy == 1.0
    assert "All labels are" in one.checks["several classes"]
    several = keras.Model(model.inputs, [model.outputs[0], model.outputs[0]])
    with pytest.raises((TypeError, ValueError), match="one tensor"):
        evaluate(several, data, FGSM(epsilon=0.1))
    with pytest.raises(ValueError, match=r"Labels must be in \[0, 4\)"):
        evaluate(model, (x, y + 3), FGSM(epsilon=0.1))
    hot = evaluate(model, (x, np.eye(4)[y]), FGSM(epsilon=0.1))
    assert hot.robust_accuracy == evaluate(model, data, FGSM(epsilon=0.1)).robust_accuracy
