# SPDX-License-Identifier: Apache-2.0
"""Robustness evaluation: counts by brute force, files, transfer, warnings, errors."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmot_atmc import attacks
from tfmot_atmc.evaluation import (
    ClassResult,
    RobustnessReport,
    evaluate_robustness,
    wilson_interval,
)
from tfmot_atmc.utils import files

# One input, class 1 above the middle: robust at radius e exactly where |x - 0.5| > e.
X = np.array([[0.9], [0.55], [0.45], [0.62], [0.1], [0.7]], np.float32)
Y = np.array([1, 1, 0, 1, 0, 0])


def step_model(x):
    return tf.concat([0.5 - x, x - 0.5], axis=-1)


def digits_model(activation=None, seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((4, 4, 1), name="pixels"),
            keras.layers.Flatten(),
            keras.layers.Dense(6, activation="relu"),
            keras.layers.Dense(3, activation=activation),
        ],
        name="tiny",
    )


@pytest.fixture(scope="module")
def model():
    return digits_model(seed=2)  # it answers two classes, one as often as the other


@pytest.fixture(scope="module")
def data(model):
    return labelled_by(model)


def labelled_by(model):
    """Forty inputs labelled by the model itself, but for every fifth."""
    x = np.random.default_rng(0).uniform(size=(40, 4, 4, 1)).astype("float32")
    y = model(x).numpy().argmax(axis=-1)
    y[::5] = (y[::5] + 1) % 3
    return x, y


def fixed_convert(model, representative=None):
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if representative is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([part] for part in representative[:, None])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def test_counts_match_a_calculation_by_hand():
    report = evaluate_robustness(
        step_model, (X, Y), attacks=[attacks.FGSM(epsilon=0.1)], batch_size=4, verbose=0
    )
    # Right when clean: all but the last; of these 0.55 and 0.45 lie within 0.1 of the middle.
    assert (report.n, report.clean_accuracy, report.robust_accuracy) == (6, 5 / 6, 3 / 6)
    (result,) = report.attacks
    assert (result.name, result.attacked, result.broken) == ("FGSM", 5, 2)
    assert result.accuracy == 0.5
    assert result.interval == pytest.approx((0.18762, 0.81238), abs=1e-4)
    assert report.classes == {0: ClassResult(3, 2, 1), 1: ClassResult(3, 3, 2)}
    assert "Weakest class: 0, 66.7% clean and 33.3% in the worst case, of 3 examples." in str(
        report
    )
    assert report.checks["no class is given up"] == "passed"


def test_a_class_that_is_hardly_ever_answered_is_named_whatever_the_average():
    def never_two(x):
        return tf.one_hot(tf.cast(x[:, 0], tf.int32) % 2, 3) + 0.0 * x

    labels = np.arange(60) % 3
    inputs = np.repeat(labels[:, None].astype("float32"), 3, axis=1)
    options = {"attacks": [attacks.Square(epsilon=0.1, queries=2, bounds=None)], "verbose": 0}
    report = evaluate_robustness(never_two, (inputs, labels), **options)
    assert report.clean_accuracy == pytest.approx(2 / 3) and report.classes[2].clean == 0
    (warning,) = [text for text in report.warnings if "given up" in text]
    assert warning == "never_two has given up 1 of 3 classes on clean inputs: 2 (0.0% of 20)."
    assert report.checks["no class is given up"] == warning
    # Four examples are too few to say so: 0 of 4 is within chance of a third.
    few = evaluate_robustness(never_two, (inputs[:12], labels[:12]), **options)
    assert few.classes[2].clean == 0 and few.checks["no class is given up"] == "passed"


def test_matches_a_brute_force_over_single_examples(model, data):
    x, y = data
    attack = attacks.PGD(epsilon=0.2, steps=30, step_size=0.05, random_start=False)
    # From the input itself PGD is no bound here, and stronger attacks would say so.
    options = {"batch_size": 7, "second_opinion": False, "verbose": 0}
    report = evaluate_robustness(model, data, attacks=attack, **options)
    robust = []
    for i in range(len(y)):
        clean = model(x[i : i + 1]).numpy().argmax() == y[i]
        x_adv = attack(model, x[i : i + 1], y[i : i + 1])
        robust.append(clean and model(x_adv).numpy().argmax() == y[i])
    assert report.clean_accuracy == 32 / 40
    assert report.robust_accuracy == np.mean(robust)
    assert 0 < report.robust_accuracy < report.clean_accuracy
    assert not report.warnings


def test_broken_examples_are_dropped_before_the_next_attack():
    seen = []

    class Recording(attacks.FGSM):
        def __call__(self, model, x, y, *, seed=None):
            seen.append(np.asarray(x).ravel().tolist())
            return super().__call__(model, x, y, seed=seed)

    ladder = {f"at {e}": Recording(epsilon=e) for e in (0.1, 0.15, 0.3)}
    report = evaluate_robustness(step_model, (X, Y), attacks=ladder, verbose=0)
    assert [len(x) for x in seen] == [5, 3, 2]
    assert [r.name for r in report.attacks] == ["at 0.1", "at 0.15", "at 0.3"]
    assert [r.broken for r in report.attacks] == [2, 1, 0]
    assert [r.accuracy for r in report.attacks] == [3 / 6, 2 / 6, 2 / 6]
    assert report.robust_accuracy == report.attacks[-1].accuracy
    seen.clear()
    report = evaluate_robustness(step_model, (X, Y), attacks=ladder, drop_broken=False, verbose=0)
    assert [len(x) for x in seen] == [5, 5, 5]
    assert [r.broken for r in report.attacks] == [2, 3, 3]
    assert report.robust_accuracy == 2 / 6


def test_same_seed_same_report_and_batches_differ(model, data):
    options = {"attacks": ["fgsm", "pgd"], "epsilon": 0.2, "batch_size": 9, "verbose": 0}
    first = evaluate_robustness(model, data, **options)
    again = evaluate_robustness(model, data, **options)
    assert first.to_dict() == again.to_dict()
    assert [r.name for r in first.attacks] == ["FGSM", "PGD-7"]

    starts = []

    class Recording(attacks.PGD):
        def __call__(self, model, x, y, *, seed=None):
            starts.append(tuple(seed.numpy()))
            return super().__call__(model, x, y, seed=seed)

    pair = [Recording(epsilon=0.2, steps=1), Recording(epsilon=0.2, steps=1)]
    options = {"attacks": pair, "batch_size": 20, "checks": False, "verbose": 0}
    named = evaluate_robustness(model, data, seed=1, **options)
    assert [r.name for r in named.attacks] == ["Recording-1", "Recording-1 #2"]
    evaluate_robustness(model, data, seed=2, **options)
    assert len(set(starts)) == len(starts) == 8


def test_each_attack_is_traced_once_per_model(model, data):
    traces = []

    class Counting(attacks.FGSM):
        def _perturb(self, problem, seed):
            traces.append(1)
            return super()._perturb(problem, seed)

    evaluate_robustness(model, data, attacks=Counting(epsilon=0.2), batch_size=7, verbose=0)
    assert len(traces) == 1


def test_datasets_one_hot_labels_and_limits_agree_with_arrays(model, data):
    x, y = data
    options = {"attacks": attacks.FGSM(epsilon=0.2), "batch_size": 8, "verbose": 0}
    expected = evaluate_robustness(model, data, **options).to_dict()
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    assert evaluate_robustness(model, dataset, **options).to_dict() == expected
    assert evaluate_robustness(model, (x, np.eye(3)[y]), **options).to_dict() == expected
    assert evaluate_robustness(model, (x, y[:, None]), **options).to_dict() == expected
    limited = evaluate_robustness(model, dataset, max_examples=19, **options).to_dict()
    assert limited == evaluate_robustness(model, (x[:19], y[:19]), **options).to_dict()
    assert limited["n"] == 19
    named = {"pixels": x}
    twin = keras.Model({"pixels": model.inputs[0]}, model.outputs[0], name=model.name)
    assert evaluate_robustness(twin, (named, y), **options).to_dict() == expected


def test_tflite_file_is_evaluated_by_transfer(tmp_path, model, data):
    path = tmp_path / "tiny.tflite"
    path.write_bytes(fixed_convert(model))
    options = {"attacks": attacks.FGSM(epsilon=0.2), "batch_size": 16, "verbose": 0}
    direct = evaluate_robustness(model, data, **options)
    report = evaluate_robustness(path, data, source=model, **options)
    assert (report.target, report.source) == ("tiny.tflite", "tiny")
    assert report.attacks[0].name == "FGSM (transfer from tiny)"
    assert report.clean_accuracy == direct.clean_accuracy
    assert report.robust_accuracy == pytest.approx(direct.robust_accuracy, abs=1 / 40)
    with pytest.raises(ValueError, match="tiny.tflite gives no gradients. Pass `source=`"):
        evaluate_robustness(path, data, **options)


def test_quantised_tflite_file_is_scaled_at_its_edges(tmp_path, model, data):
    path = tmp_path / "int8.tflite"
    path.write_bytes(fixed_convert(model, data[0]))
    report = evaluate_robustness(
        str(path), data, source=model, attacks="fgsm", epsilon=0.2, verbose=0
    )
    assert report.clean_accuracy == pytest.approx(0.8, abs=0.1)
    assert report.robust_accuracy < report.clean_accuracy


def test_tflite_file_with_a_fixed_batch_is_run_in_its_own_batches(tmp_path, model, data):
    function = tf.function(lambda x: model(x)).get_concrete_function(
        tf.TensorSpec([3, 4, 4, 1], tf.float32)
    )
    path = tmp_path / "three.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([function]).convert())
    report = evaluate_robustness(
        path, data, source=model, attacks="fgsm", epsilon=0.2, batch_size=16, verbose=0
    )
    assert report.clean_accuracy == 0.8


def test_numpy_callable_needs_a_source(model, data):
    weights = model.get_weights()

    def with_numpy(x):
        hidden = np.maximum(np.asarray(x).reshape(-1, 16) @ weights[0] + weights[1], 0)
        return hidden @ weights[2] + weights[3]

    options = {"attacks": "fgsm", "epsilon": 0.2, "verbose": 0}
    report = evaluate_robustness(with_numpy, data, source=model, **options)
    expected = evaluate_robustness(model, data, **options)
    assert report.robust_accuracy == expected.robust_accuracy
    assert report.target == "with_numpy"
    with pytest.raises(ValueError, match="No input gradient.*with_numpy(.|\n)*Pass `source=`"):
        evaluate_robustness(with_numpy, data, **options)


def test_probabilities_and_zero_gradients_are_warned_of(model, data):
    x, y = data
    softmax = digits_model("softmax")
    softmax.set_weights(model.get_weights())
    # Stronger attacks than FGSM would contradict it.
    options = {"attacks": attacks.FGSM(epsilon=0.2), "verbose": 0, "second_opinion": False}
    seen_through = evaluate_robustness(softmax, data, **options)
    assert not seen_through.warnings
    plain = evaluate_robustness(model, data, **options)
    assert seen_through.robust_accuracy == plain.robust_accuracy
    hidden = evaluate_robustness(lambda t: 1.0 * softmax(t), data, **options)
    assert "returns probabilities" in hidden.warnings[0]
    flat = evaluate_robustness(lambda t: tf.nn.relu(model(t) - 100.0), data, **options)
    assert "exactly zero for 100.0%" in flat.checks["gradients are not zero"]
    assert "allows any image" in flat.checks["unbounded attacks succeed"]
    single = evaluate_robustness(model, (x[y == 1], y[y == 1]), **options)
    assert "All labels are 1" in single.warnings[0]
    assert "Warning: All labels are 1" in str(single)


def test_non_finite_outputs_count_as_wrong():
    def broken(x):
        return step_model(x) + tf.where(x > 0.8, np.nan, 0.0)

    options = {"attacks": attacks.FGSM(epsilon=0.01), "verbose": 0}
    assert evaluate_robustness(broken, (X, Y), **options).clean_accuracy == 4 / 6


def test_an_attack_that_leaves_its_ball_or_bounds_is_an_error():
    class Cheat(attacks.FGSM):
        shift = 0.3

        def _perturb(self, problem, seed):
            return [leaf + self.shift for leaf in problem.x]

    class Escape(Cheat):
        shift = 0.15

    with pytest.raises(RuntimeError, match="Cheat left its ball.*up to 0.3"):
        evaluate_robustness(step_model, (X, Y), attacks=Cheat(epsilon=0.1), verbose=0)
    with pytest.raises(RuntimeError, match="Escape left its ball.*1.05"):
        evaluate_robustness(step_model, (X, Y), attacks=Escape(epsilon=0.2), verbose=0)


def test_batch_normalisation_runs_in_inference_mode(data):
    keras.utils.set_random_seed(0)
    normalised = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(3, dtype="bfloat16"),
        ]
    )
    before = [w.copy() for w in normalised.get_weights()]
    reports = [
        evaluate_robustness(
            normalised, data, attacks=attacks.FGSM(epsilon=0.02), batch_size=size, verbose=0
        )
        for size in (40, 3)
    ]
    assert reports[0].robust_accuracy == reports[1].robust_accuracy
    for old, new in zip(before, normalised.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_report_prints_a_table_and_saves_json(tmp_path):
    model = digits_model()
    data = labelled_by(model)
    report = evaluate_robustness(
        model, data, attacks=["fgsm", attacks.PGD(epsilon=0.2, steps=2)], epsilon=0.2, verbose=1
    )
    assert isinstance(report, RobustnessReport)
    lines = str(report).splitlines()
    assert lines[0] == "Robustness of tiny on 40 examples"
    assert [line.split()[0] for line in lines[2:6]] == ["clean", "FGSM", "PGD-2", "worst"]
    assert "attacks take enough steps" in report.checks  # two steps are too few, and it says so
    assert any(line.startswith("Warning: PGD-2 has not converged") for line in lines[6:])
    passed = "Checks passed: outputs depend on the input, outputs are logits, gradients are not"
    assert any(line.startswith(passed) for line in lines[6:])
    assert "80.00%" in lines[2]
    path = tmp_path / "report.json"
    report.save(path)
    loaded = json.loads(path.read_text())
    assert loaded == report.to_dict()
    assert RobustnessReport.load(path).to_dict() == loaded
    assert RobustnessReport.load(path).classes == report.classes and len(report.classes) == 2
    with pytest.raises(ValueError, match="is not a robustness report"):
        files.write_json(tmp_path / "other.json", {"n": 3})
        RobustnessReport.load(tmp_path / "other.json")
    (tmp_path / "other.json").unlink()
    assert loaded["attacks"][0]["attack"]["config"]["epsilon"] == 0.2
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
    rebuilt = attacks.get(loaded["attacks"][1]["attack"])
    assert repr(rebuilt).startswith("PGD(epsilon=0.2")


def test_wilson_interval_known_values():
    assert wilson_interval(8, 10) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 10)[1] == pytest.approx(0.27753, abs=1e-5)
    for bad in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="successes"):
            wilson_interval(*bad)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((X[:0], Y[:0]), {}, "received no examples"),
        ((X, Y), {"max_examples": 0}, "received no examples"),
        ((X, Y[:3]), {}, "equal lengths"),
        (X, {}, "must be a pair"),
        (tf.data.Dataset.from_tensor_slices(X).batch(2), {}, "pairs \\(x, y\\)"),
        (tf.data.Dataset.from_tensor_slices((X, Y)), {}, "in batches"),
        ((X, Y + 1), {}, "Labels must be in \\[0, 2\\)"),
        ((X * 255, Y), {}, "Rescale the inputs"),
        ((X, Y), {"batch_size": 0}, "batch_size"),
        ((X, Y), {"attacks": []}, "`attacks` is empty"),
        ((X, Y), {"attacks": None}, "Pass `attacks=`"),
        ((X, Y), {"attacks": "pgd"}, "needs `epsilon=`"),
    ],
)
def test_bad_data_and_options_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_robustness(
            step_model, data, **{"attacks": attacks.FGSM(epsilon=0.1), "verbose": 0, **options}
        )


def test_bad_targets_are_refused(tmp_path):
    options = {"epsilon": 0.1, "verbose": 0}
    with pytest.raises(ValueError, match="must name a .tflite"):
        evaluate_robustness("model.keras", (X, Y), **options)
    with pytest.raises(TypeError, match="Keras model, a callable"):
        evaluate_robustness(3, (X, Y), **options)
    with pytest.raises(ValueError, match="at least two classes"):
        evaluate_robustness(lambda x: x[:, :, None], (X, Y), **options)
