# SPDX-License-Identifier: Apache-2.0
"""No figure without a warning where a model fakes robustness; none on sound models."""

import fake_robustness as zoo
import numpy as np
import pytest
import tensorflow as tf

from tfmot_atmc.attacks import PGD, Square
from tfmot_atmc.evaluation import evaluate_robustness

NEAR = 0.1  # how far above the truth a figure may stand without a warning


@pytest.fixture(scope="module")
def digits():
    return zoo.digits()


@pytest.fixture(scope="module")
def sound(digits):
    return zoo.sound_network(digits[0])


def is_honest(name, sound, test, entry):
    report, truth = zoo.report_of_fake(name, sound, test, entry)
    told = bool(report.warnings) or abs(report.robust_accuracy - truth) <= NEAR
    assert told, f"{name}, {entry}: {report.robust_accuracy:.0%} for {truth:.0%}, and no warning"
    return report, truth


# By PGD, of each kind of masking one; the others, and other attacks, are slow together.
QUICK = (
    "logits times a thousand",
    "averaged probabilities",
    "weak path beside a stopped gradient",
    "gradient of a sixteenth of the pixels",
    "masked but for the first class, sorted",
    "wobbly inputs",
    "winners take all",
    "noise in one call of ten",
    "batch statistics at test time",
    "epsilon for [0, 1], pixels 0..255",
    "loss of the wrong sign",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_figure_by_pgd_is_near_the_truth_or_comes_with_a_warning(name, sound, digits):
    report, truth = is_honest(name, sound, digits[1], "pgd")
    assert report.robust_accuracy >= truth - NEAR


def test_square_alone_says_when_more_queries_break_more(sound, digits):
    name = "attacks take enough queries"
    short, truth = is_honest("reversed gradient", sound, digits[1], "square")
    assert short.robust_accuracy > truth + NEAR and "twice its 300 queries" in short.checks[name]
    target = zoo.FAKES["reversed gradient"].model(sound)
    long = evaluate_robustness(
        target,
        digits[1],
        attacks=Square(epsilon=zoo.EPSILON, queries=4000),
        verbose=0,
        second_opinion=False,
    )
    assert long.checks[name] == "passed" and long.robust_accuracy <= truth + NEAR


def test_the_zoo_is_large():
    assert len(zoo.FAKES) >= 20 and len(zoo.SOUND) >= 10 and set(QUICK) <= set(zoo.FAKES)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["pgd", "fgsm", "square", "autoattack"])
@pytest.mark.parametrize("name", zoo.FAKES)
def test_every_figure_is_near_the_truth_or_comes_with_a_warning(name, entry, sound, digits):
    is_honest(name, sound, digits[1], entry)


@pytest.mark.parametrize("name", ["dense", "single sigmoid", "adversarially trained"])
def test_sound_models_get_no_warning(name, digits):
    report = zoo.report_of_sound(name, *digits)
    assert report.warnings == []
    assert report.second_opinion["reported"] - report.second_opinion["accuracy"] <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.SOUND)
def test_no_sound_model_gets_a_warning(name, digits):
    assert zoo.report_of_sound(name, *digits).warnings == []


@pytest.mark.parametrize("form", ["compressed", "file"])
def test_a_compressed_fake_and_its_file_are_told_as_well(form, sound, digits):
    name = "gradient of a sixteenth of the pixels"
    report, truth = zoo.report_of_keras_fake(name, sound, digits[1], "pgd", form)
    assert report.warnings or report.robust_accuracy <= truth + NEAR


@pytest.mark.slow
@pytest.mark.parametrize("form", ["compressed", "file"])
@pytest.mark.parametrize("entry", ["pgd", "fgsm", "square", "autoattack"])
@pytest.mark.parametrize("name", zoo.KERAS_FAKES)
def test_every_compressed_fake_and_its_file_are_told(name, entry, form, sound, digits):
    report, truth = zoo.report_of_keras_fake(name, sound, digits[1], entry, form)
    assert report.warnings or report.robust_accuracy <= truth + NEAR


def converted(model, path):
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return str(path)


def test_a_file_attacked_through_another_network_is_told(sound, digits, tmp_path):
    (train, test), name = digits, "source is the target's twin"
    path = converted(sound, tmp_path / "sound.tflite")
    other = zoo.trained(zoo.mlp(), train, seed=2, epochs=15)
    attack = PGD(epsilon=0.1, steps=10, step_size=0.02)
    twin, stranger = (
        evaluate_robustness(path, test, attacks=attack, source=source, verbose=0)
        for source in (sound, other)
    )
    assert twin.checks[name] == "passed"
    assert stranger.robust_accuracy > twin.robust_accuracy
    assert "is not what net computes" in stranger.checks[name]


def test_square_on_coarse_outputs_is_told(sound, digits, tmp_path):
    x, y = digits[1]
    square = Square(epsilon=0.1, queries=30)
    coarse = zoo.rebuilt(sound, last=[zoo.Coarse()])
    found = [
        evaluate_robustness(target, (x, y), attacks=square, verbose=0, second_opinion=False)
        for target in (
            converted(sound, tmp_path / "fine.tflite"),
            converted(coarse, tmp_path / "coarse.tflite"),
            lambda x: zoo.one_hot(sound(x)),
        )
    ]
    said = [report.checks["outputs are fine enough"] for report in found]
    assert said[0] == "passed" and found[0].checks["gradients are not zero"].startswith("not run")
    assert "are coarse" in said[1] and "are coarse" in said[2]


def test_the_second_opinion_says_what_it_did_and_can_be_left_out(sound, digits):
    attack, (x, y) = PGD(epsilon=0.1, steps=2, step_size=0.01), digits[1]
    report = evaluate_robustness(sound, (x, y), attacks=attack, verbose=0)
    found = report.second_opinion
    assert found["n"] == len(y) and found["attacks"] == ["apgd-ce", "apgd-dlr", "square"]
    assert found["reported"] == report.robust_accuracy
    assert found["accuracy"] == pytest.approx(found["reported"] - found["broken"] / len(y))
    assert "overstated" in report.checks["stronger attacks agree"]
    assert "Second opinion by apgd-ce, apgd-dlr, square on 60" in str(report)
    without = evaluate_robustness(sound, (x, y), attacks=attack, verbose=0, second_opinion=False)
    assert not without.second_opinion and "stronger attacks agree" not in without.checks
    assert without.robust_accuracy == report.robust_accuracy


def test_what_the_checks_look_at_comes_from_everywhere_and_is_the_same_again():
    from tfmot_atmc.evaluation.sample import SIZE, Reservoir

    def kept(seed, batch):
        reservoir = Reservoir(seed)
        for start in range(0, 1000, batch):
            index = np.arange(start, min(start + batch, 1000))
            reservoir.offer(index, index // 100, index % 2 > 0, index % 4 > 2)
        return reservoir.examples()

    x, y, right, left, losses = kept(0, 30)
    assert losses is None
    assert len(x) == SIZE == len(set(x)) and set(y) == set(range(10))
    assert (right == (x % 2 > 0)).all() and (left == (x % 4 > 2)).all()
    assert 400 < x.mean() < 600 and not (np.diff(x) > 0).all()
    assert (kept(0, 7)[0] == x).all() and not (kept(1, 30)[0] == x).all()
