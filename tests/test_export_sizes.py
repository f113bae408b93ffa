# SPDX-License-Identifier: Apache-2.0
"""The smallest files: rounding on request, slimming, small graphs and a limit that holds."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.exporting import perceptron, prune, quick_export
from tests.test_export import lenet, operators, restored_weights
from tfmot_atmc import export
from tfmot_atmc.export.tflite import flatbuffer
from tfmot_atmc.export.tflite.grids import nearest_int8_grid
from tfmot_atmc.math import parse_bytes


def test_the_nearest_grid_is_the_exact_one_where_there_is_one():
    codes = np.array([0, 5, -127, 64], np.int8)
    found, scale = nearest_int8_grid(codes * np.float32(0.03))
    np.testing.assert_array_equal(found, codes)
    assert scale == np.float32(0.03)


def test_rounding_is_within_half_a_scale_and_better_than_the_plain_scale():
    rng = np.random.default_rng(0)
    array = (rng.standard_t(4, (50, 40)) * (rng.random((50, 40)) < 0.3)).astype(np.float32)
    codes, scale = nearest_int8_grid(array)
    plain = np.abs(array).max() / 127
    clipped = np.clip(array, -127 * scale, 127 * scale)
    assert np.abs(codes * scale - clipped).max() <= scale / 2 + 1e-6
    error = np.square(codes * scale - array).sum()
    assert error <= np.square(np.rint(array / plain) * plain - array).sum()
    assert codes.dtype == np.int8 and not codes[array == 0].any()
    assert not nearest_int8_grid(np.zeros((3, 2), np.float32))[0].any()
    with pytest.raises(ValueError, match="finite"):
        nearest_int8_grid(np.array([1.0, np.nan], np.float32))


def test_rounded_weights_and_biases_are_stored_in_one_byte_each(tmp_path):
    model = prune(perceptron(width=128), 0.1)
    for layer in model.layers:
        layer.bias.assign(np.linspace(-1, 1, layer.units))
    exact = quick_export(model, tmp_path / "exact.tflite")
    report = quick_export(model, tmp_path / "small.tflite", values="int8")
    assert {t.dtype for t in report.tensors if t.shape == (128, 128)} == {"int8"}
    assert report.bytes < 0.6 * exact.bytes and 1e-5 < report.max_difference < 0.05
    assert report.delegated_partitions == 1
    assert report.max_difference == pytest.approx(report.max_difference_without_delegates, rel=1e-3)
    kernel = model.layers[1].kernel.numpy().T
    restored = next(w for w in restored_weights(tmp_path / "small.tflite") if w.shape == (128, 128))
    assert np.abs(restored - kernel).max() <= np.abs(kernel).max() / 127
    parsed = flatbuffer.read_model((tmp_path / "small.tflite").read_bytes())
    biases = [t for t in parsed.subgraphs[0].tensors if list(t.shape) == [128]]
    assert len({flatbuffer.type_name(t) for t in biases} & {"int8"}) == 1
    with pytest.raises(export.ExportError, match="differs from Keras"):
        quick_export(model, tmp_path / "no.tflite", values="int8", tolerance=1e-6)
    assert not (tmp_path / "no.tflite").exists()


def test_a_dense_grid_kernel_is_stored_in_one_byte_each_without_rounding(tmp_path):
    model = prune(perceptron(), 1.0, grid=0.01)
    report = quick_export(model, tmp_path / "model.tflite")
    assert {t.format for t in report.tensors} == {"dense"} and report.num_sparse == 0
    assert {t.dtype for t in report.tensors if t.size > 500} == {"int8"}
    assert report.max_difference < 1e-6 and report.delegated_partitions == 1
    assert report.bytes < report.dense_bytes / 3


def test_slimming_is_part_of_the_export_and_told(tmp_path):
    model = prune(lenet(), 0.01)
    plain = quick_export(model, tmp_path / "plain.tflite", slim=False)
    report = quick_export(model, tmp_path / "slim.tflite", slim=None)
    assert report.bytes < plain.bytes and report.dense_bytes == plain.dense_bytes
    assert report.max_difference < 1e-5 and plain.slimming is None
    before, after = report.slimming.parameters
    assert before == model.count_params() and after < before
    assert "slimmed from" in str(report) and "slimmed" not in str(plain)
    assert report.to_dict()["slimming"]["parameters"] == (before, after)


def test_a_model_whose_graph_is_not_known_is_exported_but_not_slimmed_on_demand(tmp_path):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(4)

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    model(np.zeros((1, 8), np.float32))
    inputs = np.ones((2, 8), np.float32)
    assert quick_export(model, tmp_path / "a.tflite", slim=None, inputs=inputs).slimming is None
    with pytest.raises(ValueError, match="graph"):
        quick_export(model, tmp_path / "b.tflite", slim=True, inputs=inputs)
    assert not (tmp_path / "b.tflite").exists()


def test_reshapes_in_a_row_become_one_and_unused_tensors_go(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Reshape((16, 2)),
            layers.Reshape((8, 4)),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    path = tmp_path / "model.tflite"
    quick_export(model, path)
    assert operators(path) == ["RESHAPE", "FULLY_CONNECTED"]
    subgraph = flatbuffer.read_model(path.read_bytes()).subgraphs[0]
    used = {int(i) for o in subgraph.operators for i in (*o.inputs, *o.outputs)} - {-1}
    assert used == set(range(len(subgraph.tensors)))


def test_a_limit_of_bytes_holds_or_nothing_is_written(tmp_path):
    model = prune(perceptron(), 0.1)
    report = quick_export(model, tmp_path / "a.tflite", max_bytes="16KB")
    assert report.bytes <= 16 * 1024
    with pytest.raises(export.ExportError, match="max_bytes"):
        quick_export(model, tmp_path / "b.tflite", max_bytes=report.bytes - 1)
    assert not (tmp_path / "b.tflite").exists()
    for wrong in ("24 furlongs", 0, -5, 1.5, True, ""):
        with pytest.raises(ValueError, match="size"):
            quick_export(model, tmp_path / "b.tflite", max_bytes=wrong)


@pytest.mark.parametrize(
    ("text", "count"),
    [("24KB", 24576), ("1.5 MiB", 1572864), ("12000", 12000), ("3 kb", 3072), ("7 bytes", 7)],
)
def test_sizes_are_read_as_flash_memories_are_counted(text, count):
    assert parse_bytes(text) == count
