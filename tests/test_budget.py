# SPDX-License-Identifier: Apache-2.0
"""A byte budget: predicted before training, held by the file, or refused with what is possible."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.exporting import prune
from tests.test_slimming import agree, kernels
from tfmot_atmc import compress, fit_to_bytes, plan_budget
from tfmot_atmc.export import TooLargeError, export_tflite, graph_bytes, weight_bytes
from tfmot_atmc.slimming import measure_influence, slim_model, trim_channels


def network(width=64):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu", name="conv"),
            layers.BatchNormalization(),
            layers.Conv2D(16, 3, activation="relu", name="second"),
            layers.Flatten(),
            layers.Dense(width, activation="relu", name="wide"),
            layers.Dense(10, name="head"),
        ]
    )


@pytest.mark.parametrize("values", ["int8", "auto"])
@pytest.mark.parametrize("density", [0.02, 0.2, 1.0])
def test_the_predicted_size_is_that_of_the_file(tmp_path, values, density):
    model = slim_model(prune(network(), density))
    report = export_tflite(model, tmp_path / "m.tflite", values=values, measure_latency=False)
    predicted = graph_bytes(model) + weight_bytes(model, values=values)
    assert abs(predicted - report.bytes) < 0.05 * report.bytes + 200


def test_a_plan_grows_with_the_budget_and_ends_at_the_dense_model():
    plans = [plan_budget(network(), size) for size in ("4KB", "8KB", "16KB", "1MB")]
    ratios = [plan.ratio for plan in plans]
    assert ratios == sorted(ratios) and ratios[0] < 0.2 and ratios[-1] == 1.0
    assert all(plan.smallest_bytes < plan.predicted_bytes <= plan.max_bytes for plan in plans)
    assert plans[0] == plan_budget(network(), 4096)


def test_an_impossible_budget_says_what_is_possible():
    with pytest.raises(ValueError, match=r"smallest possible file .* about 1,\d{3} bytes"):
        plan_budget(network(), "1KB")
    with pytest.raises(ValueError, match="smallest possible"):
        compress(network(), "atmc", max_bytes=500)
    with pytest.raises(ValueError, match="give no .*`ratio`"):
        compress(network(), "atmc", max_bytes="8KB", ratio=0.1)
    with pytest.raises(ValueError, match="no kernel"):
        plan_budget(keras.Sequential([keras.Input((4,)), layers.BatchNormalization()]), "8KB")


def test_compress_takes_the_planned_ratio():
    compressed = compress(network(), "atmc", max_bytes="8KB")
    assert compressed.method.get_config()["ratio"] == plan_budget(network(), "8KB").ratio
    assert compressed.method.get_config()["bits"] == 8
    assert compress(network(), "al0", max_bytes="8KB").method.get_config()["ratio"] < 1


@pytest.mark.parametrize("size", ["16KB", 6000, 4800])
def test_a_file_within_the_budget_or_with_fewer_channels(tmp_path, size):
    model = prune(network(), 0.3)
    inputs = np.random.default_rng(0).random((64, 8, 8, 1), np.float32)
    path = tmp_path / "model.tflite"
    fitted = fit_to_bytes(model, path, size, inputs, measure_latency=False)
    limit = 16384 if size == "16KB" else size
    assert path.stat().st_size == fitted.report.bytes <= limit
    assert bool(fitted.channels) == (size != "16KB")
    shapes = kernels(fitted.model)
    for name, kept in fitted.channels.items():
        assert shapes[name][-1] == kept
    if fitted.channels:
        assert fitted.report.bytes > 0.85 * limit  # no more than needed was removed
    else:
        agree(model, fitted.model)


def test_no_file_is_left_where_nothing_fits(tmp_path):
    inputs = np.zeros((4, 8, 8, 1), np.float32)
    with pytest.raises(TooLargeError, match="does not fit"):
        fit_to_bytes(prune(network(), 0.3), tmp_path / "m.tflite", 900, inputs)
    assert not list(tmp_path.iterdir())


def test_the_channels_that_matter_least_become_their_mean():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(3, activation="relu", name="wide"), layers.Dense(1)]
    )
    # On these inputs unit 0 is always about 5, unit 1 varies, and unit 2 hardly counts.
    model.layers[0].set_weights([np.array([[0.0, 1, 1], [0.01, 0, 0]]), np.array([5.0, 0, 0])])
    model.layers[1].set_weights([np.array([[1.0], [1.0], [0.1]]), np.zeros(1)])
    inputs = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], np.float32)
    influence = measure_influence(model, inputs)["wide"].influence
    np.testing.assert_allclose(
        influence, np.std([0, 1, 2, 3]) * np.array([0.01, 1, 0.1]), rtol=1e-4
    )
    trimmed = trim_channels(model, inputs, {"wide": 1})
    np.testing.assert_allclose(trimmed.layers[1].bias, [5.015 + 0.15], rtol=1e-5)
    np.testing.assert_allclose(
        trimmed.predict(inputs, verbose=0).mean(), model.predict(inputs, verbose=0).mean(), 1e-5
    )
    with pytest.raises(ValueError, match="at least"):
        trim_channels(model, inputs, {"wide": 0})


def test_channels_of_residual_sums_and_outputs_are_not_trimmed():
    inputs = keras.Input((6, 6, 2))
    stem = layers.Conv2D(4, 1, name="stem")(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="inside")(stem)
    x = layers.Add()([stem, layers.Conv2D(4, 1, name="back")(x)])
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    measured = measure_influence(model, np.random.default_rng(0).random((8, 6, 6, 2)))
    assert set(measured) == {"inside"}
