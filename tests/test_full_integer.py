# SPDX-License-Identifier: Apache-2.0
"""Full-integer export: int8 weights, sparse too, and int8 activations in the stock interpreter."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from tests.exporting import prune, quick_export
from tests.test_export import operators
from tfmot_atmc import datasets, export
from tfmot_atmc.cli import main
from tfmot_atmc.export import stored_bytes
from tfmot_atmc.export.tflite import flatbuffer
from tfmot_atmc.export.tflite.conversion import convert, describe_inputs

FULL = {"values": "full_int8"}


def pairs(rng, scale=10.0):
    shape = (24, 6, 6, 1)
    return [rng.random(shape, np.float32), scale * rng.random(shape, np.float32)]


def two_inputs():
    """Convolutions and wide dense layers without biases, of inputs with different ranges."""
    first, second = keras.Input((6, 6, 1), name="z"), keras.Input((6, 6, 1), name="a")
    sums = layers.Conv2D(20, 3, use_bias=False)(first) + layers.Conv2D(20, 3)(second)
    hidden = layers.Dense(60, activation="relu", use_bias=False)(layers.Flatten()(sums))
    return keras.Model([first, second], layers.Dense(5, use_bias=False)(hidden))


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def trained(digits):
    """A network of digits whose kernels keep a tenth of their weights, trained with those."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(digits.x_train, digits.y_train, batch_size=64, epochs=6, verbose=0)
    kernels = [layer.kernel for layer in model.layers if layer.weights]
    masks = []
    for kernel in kernels:
        values = np.abs(keras.ops.convert_to_numpy(kernel))
        masks.append((values >= np.quantile(values, 0.9)).astype(np.float32))
    for _ in range(3):
        for kernel, mask in zip(kernels, masks, strict=True):
            kernel.assign(kernel * mask)
        model.fit(digits.x_train, digits.y_train, batch_size=64, epochs=1, verbose=0)
    for kernel, mask in zip(kernels, masks, strict=True):
        kernel.assign(kernel * mask)
    return model


@pytest.fixture(scope="module")
def exported(trained, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("integer") / "digits.tflite"
    images = digits.x_test[:200]
    report = quick_export(trained, path, **FULL, inputs=images, representative=digits.x_train[:200])
    return path, report


def test_integer_file_gives_the_labels_of_keras_with_and_without_delegates(
    trained, digits, exported
):
    path, report = exported
    images = digits.x_test[:200]
    expected = trained.predict(images, verbose=0).argmax(-1)
    for delegates in (True, False):
        (logits,) = export.TFLiteModel(path, delegates=delegates)(images)
        assert np.mean(logits.argmax(-1) == expected) >= 0.97
    assert report.label_agreement >= 0.97 and report.examples == 200
    assert 0.0 < report.max_difference < 0.25 and report.delegated_partitions == 1


def test_integer_file_is_smaller_than_the_dense_one_and_than_that_of_the_converter(
    trained, digits, exported
):
    path, report = exported
    own = convert(trained, describe_inputs(trained, None, 1), [digits.x_train[:200]])
    assert report.dense_bytes == len(own)
    assert path.stat().st_size == report.bytes < len(own)
    assert report.num_sparse >= 2


def test_integer_file_computes_in_integers_only(exported):
    path, _ = exported
    weights = [t for t in export.inspect_tflite(path) if len(t.shape) > 1]
    assert {t.dtype for t in weights} == {"int8"}
    assert sum(t.is_sparse for t in weights) >= 2 and all(t.nonzeros for t in weights)
    kinds = operators(path)
    # A dense layer with unpacked int8 weights would not run under XNNPACK.
    assert "DENSIFY" in kinds and kinds.count("DEQUANTIZE") == kinds.count("QUANTIZE") == 1
    model = flatbuffer.read_model(path.read_bytes())
    (subgraph,) = model.subgraphs
    floats = [
        index
        for index, tensor in enumerate(subgraph.tensors)
        if tensor.type == schema.TensorType.FLOAT32
    ]
    assert floats == sorted(int(index) for index in (*subgraph.inputs, *subgraph.outputs))


def test_sparse_codes_are_those_of_the_converter(trained, digits, exported):
    path, report = exported
    own = convert(trained, describe_inputs(trained, None, 1), [digits.x_train[:200]])
    dense = flatbuffer.read_model(own)
    arrays = [flatbuffer.read_constant(dense, t) for t in dense.subgraphs[0].tensors]
    codes = [c.array for c in arrays if c is not None and c.array.dtype == np.int8]
    expected = sorted((np.count_nonzero(array), np.unique(array).size - 1) for array in codes)
    assert sorted((t.nonzeros, t.distinct) for t in report.tensors) == expected


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_several_inputs_keep_their_ranges_and_layers_may_lack_biases(batch_size, tmp_path):
    model, data = prune(two_inputs(), 0.1), pairs(np.random.default_rng(0))
    path = tmp_path / "two.tflite"
    # Swapped ranges would saturate the second input and cost most of the output.
    report = quick_export(
        model, path, **FULL, representative=data, batch_size=batch_size, tolerance=0.08
    )
    assert report.examples == 24
    dense_layers = operators(path).count("FULLY_CONNECTED")
    assert dense_layers == (2 if batch_size is None else 1)
    assert ("DENSIFY" in operators(path)) == (batch_size is not None)


def test_missing_needless_and_damaged_representative_data_are_refused(trained, digits, tmp_path):
    path, images = tmp_path / "no.tflite", digits.x_train[:4]
    with pytest.raises(ValueError, match=r"pass `representative`.*x_train\[:300\]"):
        quick_export(trained, path, **FULL)
    with pytest.raises(ValueError, match="is for values='full_int8'"):
        quick_export(trained, path, representative=images)
    with pytest.raises(ValueError, match="`representative` for .* must have shape"):
        quick_export(trained, path, **FULL, representative=images[:, :5])
    with pytest.raises(ValueError, match="`representative` for .* not finite"):
        quick_export(trained, path, **FULL, representative=np.full_like(images, np.nan))
    with pytest.raises(ValueError, match="`min_agreement` must be"):
        quick_export(trained, path, **FULL, representative=images, min_agreement=1.5)
    assert not path.exists()


def test_ranges_of_other_data_are_found_by_the_gate(trained, digits, tmp_path):
    path = tmp_path / "wrong.tflite"
    dark = {"representative": 0.02 * digits.x_train[:50], "inputs": digits.x_test[:100]}
    with pytest.raises(export.ExportError, match="differs from Keras"):
        quick_export(trained, path, **FULL, **dark)
    with pytest.raises(export.ExportError, match=r"of the examples, at least 90\.0% is asked"):
        quick_export(trained, path, **FULL, **dark, tolerance=100.0)
    assert not path.exists()


def test_loops_which_would_end_the_process_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((4, 3)), layers.GRU(4), layers.Dense(2)])
    sequences = np.zeros((2, 4, 3), np.float32)
    with pytest.raises(export.ExportError, match="has a loop"):
        quick_export(model, tmp_path / "gru.tflite", **FULL, representative=sequences)


def test_stored_bytes_of_integer_weights_need_no_dequantize():
    kernel = np.zeros((3, 3, 16, 32), np.float32)
    kernel[1, 1] = 0.25
    assert stored_bytes(kernel, **FULL) < stored_bytes(kernel, values="int8")
    assert stored_bytes(np.ones((20, 5), np.float32), **FULL) == 100
    assert stored_bytes(np.zeros((400, 50), np.float32), **FULL) < 2000


def test_command_line_takes_training_images_and_the_file_packs(trained, capsys, tmp_path):
    trained.save(tmp_path / "digits.keras")
    arguments = ["export", str(tmp_path / "digits.keras"), "--values=full_int8"]
    assert main([*arguments, "--dataset=digits"]) == 0
    assert "labels agree" in capsys.readouterr().out
    path = tmp_path / "digits.tflite"
    kinds = {t.dtype for t in export.inspect_tflite(path) if len(t.shape) > 1}
    assert kinds == {"int8"}
    export.pack_archive(path, tmp_path / "digits.atmc")
    export.unpack_archive(tmp_path / "digits.atmc", tmp_path / "back.tflite")
    assert (tmp_path / "back.tflite").read_bytes() == path.read_bytes()


def test_command_line_asks_for_a_dataset(capsys):
    assert main(["export", "absent.keras", "--values=full_int8"]) == 2
    assert "needs --dataset" in capsys.readouterr().err


def test_dense_layers_in_a_row_need_two_reshapes(tmp_path):
    """Between two convolutions that were dense layers nothing changes its shape."""
    rng = np.random.default_rng(0)
    layers = [keras.layers.Dense(64, "relu") for _ in range(3)]
    model = keras.Sequential([keras.Input((64,)), *layers, keras.layers.Dense(64)])
    for layer in model.layers:
        layer.kernel.assign(layer.kernel.numpy() * (rng.random((64, 64)) < 0.05))
    x = rng.random((64, 64), dtype="float32")
    path = tmp_path / "m.tflite"
    more = {"values": "full_int8", "representative": x, "measure_latency": False, "slim": False}
    export.export_tflite(model, path, min_agreement=0.0, **more)
    found = export.list_operators(path)
    assert found["CONV_2D"] == 4 and found["RESHAPE"] == 2
    assert "FULLY_CONNECTED" not in found
