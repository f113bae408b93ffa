# SPDX-License-Identifier: Apache-2.0
"""A network through which nothing passes any more is told everywhere, by the layer's name."""

import warnings

import keras
import numpy as np
import pytest

import tfmot_atmc as atmc
from tfmot_atmc.evaluation.checks import given_up, one_answer
from tfmot_atmc.evaluation.report import ClassResult
from tfmot_atmc.slimming.dead import (
    constant_output,
    dead_layers,
    depends_on_input,
    what_is_dead,
)

LAYERS = keras.layers


def _separable():
    """A convolution, a depthwise one with padding, a pointwise one, scores."""
    inputs = keras.Input((6, 6, 1), name="image")
    x = LAYERS.Conv2D(4, 3, name="stem")(inputs)
    x = LAYERS.ReLU()(LAYERS.BatchNormalization(name="norm")(x))
    x = LAYERS.DepthwiseConv2D(3, padding="same", name="each")(x)
    x = LAYERS.Conv2D(4, 1, activation="relu", name="across")(x)
    return keras.Model(inputs, LAYERS.Dense(3, name="scores")(LAYERS.Flatten()(x)))


def _empty(model, *names):
    for name in names:
        kernel = model.get_layer(name).kernel
        kernel.assign(np.zeros(kernel.shape))
    return model


def _images(count=8):
    return np.random.default_rng(0).random((count, 6, 6, 1), dtype="float32")


def test_a_sound_network_has_no_dead_layer():
    model = _separable()
    assert dead_layers(model) == [] and depends_on_input(model)
    assert what_is_dead(model) is None


@pytest.mark.parametrize("name", ["stem", "each", "across", "scores"])
def test_the_layer_at_which_the_input_ends_is_named_and_not_those_after_it(name):
    model = _empty(_separable(), name)
    assert [layer.layer for layer in dead_layers(model)] == [name]
    assert not depends_on_input(model)
    message = what_is_dead(model)
    assert f"'{name}'" in message and "constant" in message and "`ratio`" in message
    assert constant_output([model.predict(_images(), verbose=0)])


def test_weights_that_read_only_dead_channels_are_found_though_none_is_zero_alone():
    inputs = keras.Input((6, 6, 3))
    x = LAYERS.Conv2D(4, 3, use_bias=False, name="first")(inputs)
    x = LAYERS.Conv2D(2, 3, name="second")(x)
    model = keras.Model(inputs, LAYERS.GlobalAveragePooling2D()(x))
    first, second = (model.get_layer(name).kernel for name in ("first", "second"))
    first.assign(first.numpy() * np.array([0, 0, 1, 1], "float32"))  # channels 2 and 3 live
    second.assign(second.numpy() * np.array([1, 1, 0, 0], "float32")[:, None])  # reads 0 and 1
    (found,) = dead_layers(model)
    assert found.layer == "second" and "reads only channels" in found.reason
    assert not depends_on_input(model)


def test_an_empty_branch_beside_a_shortcut_is_named_but_the_output_still_depends():
    model = _empty(atmc.models.resnet8((8, 8, 3), 3, seed=0), "block1_conv2")
    assert [layer.layer for layer in dead_layers(model)] == ["block1_conv2"]
    assert depends_on_input(model) and "constant" not in what_is_dead(model)


def test_subclassed_models_are_searched_for_empty_kernels():
    @keras.saving.register_keras_serializable(package="test_dead")
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.last = LAYERS.Dense(2, name="last")

        def call(self, inputs):
            return self.last(inputs)

    model = Own()
    model(np.ones((1, 3), "float32"))
    assert dead_layers(model) == []
    model.last.kernel.assign(np.zeros((3, 2)))
    assert [layer.layer for layer in dead_layers(model)] == ["last"]


def test_fit_report_strip_export_and_evaluation_each_tell(tmp_path):
    x, y = _images(32), np.arange(32) % 3
    start = _separable()
    start.get_layer("each").kernel.assign(1e-6 * start.get_layer("each").kernel)
    small = atmc.compress(start, atmc.methods.AL0(k=60, schedule="constant", floors=0))
    small.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    small.optimizer.learning_rate = 0.0
    with pytest.warns(UserWarning, match="'each'.*constant"):
        small.fit(x, y, verbose=0, callbacks=[atmc.callbacks.UpdateCompression()])
    report = small.compression_report()
    assert report.empty == ("each",) and "nothing passes through each" in str(report)
    assert report.to_dict()["empty_layers"] == ["each"]
    with pytest.warns(UserWarning, match="'each'.*constant"):
        plain = atmc.strip_compression(small)
    path = tmp_path / "dead.tflite"
    with pytest.warns(UserWarning, match="'each'.*constant"):
        export = atmc.export_tflite(plain, path, inputs=x, measure_latency=False)
    assert "Warning: Nothing passes through 'each'" in str(export)
    assert export.to_dict()["warnings"] == export.warnings and len(export.warnings) == 1
    found = atmc.evaluate_robustness(plain, (x, y), attacks=atmc.attacks.FGSM(epsilon=0.1))
    assert "constant" in found.checks["outputs depend on the input"]
    assert "answers class" in found.checks["several classes are answered"]


def test_a_sound_network_is_told_nothing(tmp_path):
    small = atmc.compress(_separable(), "al0", ratio=0.5)
    small.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # Keras 3.10 says this of every functional model that is made from its configuration.
        warnings.filterwarnings("ignore", r"(?s).*structure of `inputs` doesn't match")
        x, y = _images(32), np.arange(32) % 3
        small.fit(x, y, verbose=0, callbacks=[atmc.callbacks.UpdateCompression()])
        plain = atmc.strip_compression(small)
        export = atmc.export_tflite(plain, tmp_path / "a.tflite", inputs=x, measure_latency=False)
    assert small.compression_report().empty == () and export.warnings == ()


def test_classes_without_one_right_example_are_given_up_whatever_the_average():
    found = {0: ClassResult(30, 30, 0), 1: ClassResult(30, 0, 0), 2: ClassResult(9, 0, 0)}
    assert "1 (0.0% of 30)" in given_up("it", found) and "2 (" not in given_up("it", found)
    assert "answers class 0 to all of 69" in one_answer("it", found)
    fair = {0: ClassResult(30, 9, 0), 1: ClassResult(30, 6, 0)}
    assert given_up("it", fair) is None and one_answer("it", fair) is None
    assert one_answer("it", {0: ClassResult(30, 30, 0)}) is None


def test_constant_output_wants_different_examples_and_finite_values():
    assert constant_output([np.full((4, 2), 3.0)])
    assert not constant_output([np.full((1, 2), 3.0)]) and not constant_output([])
    assert not constant_output([np.full((4, 2), np.nan)])
    assert not constant_output([np.ones((4, 2)), np.eye(4)])
    assert constant_output([1.0 + 1e-9 * np.eye(3)])
