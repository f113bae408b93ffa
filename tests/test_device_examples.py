# SPDX-License-Identifier: Apache-2.0
"""The programs for a device do what Keras does, with ai-edge-litert and NumPy alone."""

import ctypes
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from tfmot_atmc import datasets, export

DEVICE = pathlib.Path(__file__).resolve().parent.parent / "examples" / "device"
COUNT = 30


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def model(data):
    """A small network that reads most digits, so that its likeliest classes stand out."""
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=3, verbose=0)
    return model


def _export_uint8(model, examples, path):
    function = tf.function(lambda images: model(images, training=False))
    concrete = function.get_concrete_function(tf.TensorSpec((1, 8, 8, 1), tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[np.newaxis]] for image in examples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    path.write_bytes(converter.convert())


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, data):
    """Models, images and labels, and modules that nothing on a device may import."""
    folder = tmp_path_factory.mktemp("device")
    for name, batch in (("one", 1), ("seven", 7), ("any", None)):
        path = folder / f"{name}.tflite"
        export.export_tflite(model, path, batch_size=batch, measure_latency=False)
    _export_uint8(model, data.x_train[:100], folder / "uint8.tflite")
    np.save(folder / "images.npy", data.x_test[:COUNT])
    np.save(folder / "labels.npy", data.y_test[:COUNT])
    (folder / "blocked").mkdir()
    for name in ("keras", "tensorflow", "tfmot_atmc"):
        (folder / "blocked" / f"{name}.py").write_text("raise SystemExit(__name__ + ' imported')\n")
    return folder


@pytest.fixture(scope="module")
def scores(model, data):
    return keras.ops.convert_to_numpy(keras.ops.softmax(model(data.x_test[:COUNT])))


def _run(folder, script, *arguments, fails=False):
    outcome = subprocess.run(
        [sys.executable, str(DEVICE / script), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "blocked")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == int(fails), outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr
    return outcome.stderr if fails else outcome.stdout


def _parse(lines):
    """The classes and scores of each line of classify.py."""
    rows = [[pair.split() for pair in line.split(": ")[1].split("  ")] for line in lines]
    classes = np.array([[int(pair[0]) for pair in row] for row in rows])
    return classes, np.array([[float(pair[1]) for pair in row] for row in rows])


@pytest.mark.parametrize("name", ["one", "seven", "any"])
def test_classes_and_scores_are_those_of_keras_whatever_the_batch(folder, scores, data, name):
    text = _run(folder, "classify.py", f"{name}.tflite", "images.npy", "--labels", "labels.npy")
    *lines, accuracy = text.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(image) for image in range(COUNT)]
    classes, values = _parse(lines)
    np.testing.assert_array_equal(classes[:, 0], scores.argmax(axis=1))
    np.testing.assert_allclose(values, -np.sort(-scores, axis=1)[:, :3], atol=1e-4)
    right = int((scores.argmax(axis=1) == data.y_test[:COUNT]).sum())
    assert accuracy == f"accuracy: {right / COUNT:.4f} ({right} of {COUNT})"


def test_quantised_inputs_and_outputs_are_converted_by_scale_and_zero_point(folder, scores, data):
    lines = _run(folder, "classify.py", "uint8.tflite", "images.npy", "--top=10").splitlines()
    classes, values = _parse(lines)
    interpreter = Interpreter(str(folder / "uint8.tflite"))
    interpreter.allocate_tensors()
    (given,), (taken,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["dtype"] == taken["dtype"] == np.uint8
    outputs = []
    for image in data.x_test[:COUNT].astype(np.float64):
        scale, zero_point = given["quantization"]
        codes = np.clip(np.round(image / scale) + zero_point, 0, 255).astype(np.uint8)
        interpreter.set_tensor(given["index"], codes[np.newaxis])
        interpreter.invoke()
        scale, zero_point = taken["quantization"]
        outputs.append((interpreter.get_tensor(taken["index"])[0] - float(zero_point)) * scale)
    expected = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(values, np.take_along_axis(expected, classes, axis=1), atol=1e-4)
    assert (classes[:, 0] == scores.argmax(axis=1)).mean() > 0.9


def test_bytes_and_images_without_their_channel_are_taken(folder, data):
    codes = np.round(data.x_test[:COUNT] * 255).astype(np.uint8)
    np.save(folder / "bytes.npy", codes)
    np.save(folder / "floats.npy", codes[..., 0] / 255.0)
    np.save(folder / "single.npy", codes[0])
    np.save(folder / "single_plane.npy", codes[0, ..., 0])
    names = ("bytes", "floats", "single", "single_plane")
    texts = [
        _run(folder, "classify.py", "one.tflite", f"{name}.npy", "--divide=255") for name in names
    ]
    assert len(texts[0].splitlines()) == COUNT
    assert texts[0] == texts[1]
    assert texts[2] == texts[3] == texts[0].splitlines(keepends=True)[0]


def test_a_camera_s_bytes_go_in_as_they_are_and_classes_have_their_names(folder, model, data):
    path, names = folder / "camera.tflite", [f"digit {i}" for i in range(10)]
    given = {"representative": data.x_train[:100], "input_type": "uint8", "output_type": "uint8"}
    export.export_tflite(
        model, path, values="full_int8", class_names=names, measure_latency=False, **given
    )
    codes = np.round(data.x_test[:COUNT] * 255).astype(np.uint8)
    np.save(folder / "codes.npy", codes)
    lines = _run(folder, "classify.py", "camera.tflite", "codes.npy", "--top=1").splitlines()
    outputs = export.TFLiteModel(path)(codes)[0]
    expected = [f"{i}: digit {c} " for i, c in enumerate(outputs.argmax(axis=1))]
    assert all(line.startswith(told) for line, told in zip(lines, expected, strict=True))
    asked = _run(folder, "classify.py", "one.tflite", "codes.npy", fails=True)
    assert "--divide 255 where it takes values in [0, 1]" in asked


def _broken(folder):
    np.save(folder / "wide.npy", np.zeros((2, 9, 9, 1), np.float32))
    infinite = np.zeros((3, 8, 8, 1), np.float32)
    infinite[1, 0, 0, 0] = np.inf
    np.save(folder / "infinite.npy", infinite)
    np.save(folder / "none.npy", np.zeros((0, 8, 8, 1), np.float32))
    np.save(folder / "integers.npy", np.zeros((2, 8, 8, 1), np.int64))
    (folder / "text.npy").write_text("no array")
    (folder / "text.tflite").write_text("no model at all")
    (folder / "cut.tflite").write_bytes((folder / "one.tflite").read_bytes()[:600])


def test_what_does_not_fit_is_named_without_a_traceback(folder):
    _broken(folder)
    cases = (
        (("one.tflite", "wide.npy"), "takes images of shape [8, 8, 1], the array has the shape"),
        (("one.tflite", "infinite.npy"), "Image 1 has values that are not finite"),
        (("one.tflite", "none.npy"), "holds no image"),
        (("one.tflite", "integers.npy"), "floats or of uint8, got int64"),
        (("one.tflite", "text.npy"), "text.npy is not a .npy file"),
        (("one.tflite", "absent.npy"), "No such file or directory: 'absent.npy'"),
        (("absent.tflite", "images.npy"), "No such file or directory: 'absent.tflite'"),
        (("text.tflite", "images.npy"), "text.tflite is not a .tflite file"),
        (("cut.tflite", "images.npy"), "does not accept cut.tflite"),
        (("one.tflite", "images.npy", "--labels", "wide.npy"), "one integer label for each of 30"),
        (("one.tflite", "images.npy", "--top", "0"), "--top must be at least 1"),
    )
    for arguments, message in cases:
        text = _run(folder, "classify.py", *arguments, fails=True)
        assert message in text and "classify.py: error: " in text
    text = _run(folder, "benchmark.py", "one.tflite", "text.tflite", fails=True)
    assert "benchmark.py: error: text.tflite is not a .tflite file" in text


def test_the_benchmark_measures_every_file_and_writes_what_it_prints(folder):
    arguments = ("one.tflite", "uint8.tflite", "--rounds=2", "--json=results.json")
    header, *rows, _ = _run(folder, "benchmark.py", *arguments).splitlines()
    assert header.split()[0] == "file" and len(rows) == 2
    results = json.loads((folder / "results.json").read_text())
    assert results["threads"] == 1 and results["rounds"] == 2
    for row, measured in zip(rows, results["models"], strict=True):
        size = (folder / measured["file"]).stat().st_size
        assert measured["bytes"] == size
        assert row.split()[:2] == [measured["file"], f"{size:,}"]
        assert 0 < measured["p10_ms"] <= measured["median_ms"] <= measured["p90_ms"]
        assert measured["load_ms"] > 0 and measured["runs"] >= 2
        assert measured["peak_bytes"] > results["baseline_peak_bytes"] // 2 > 0
        assert 0 <= measured["delegated_tensors"] <= measured["intermediate_tensors"]
        assert measured["intermediate_tensors"] > 0
    assert not (folder / "results.json.partial").exists()


def test_the_library_in_the_wheel_exports_what_the_cpp_program_calls():
    package = pathlib.Path(importlib.util.find_spec("ai_edge_litert").origin).parent
    path = package / "libLiteRt.so"
    if not path.is_file():
        pytest.skip("the wheel of this platform has no libLiteRt.so")
    library = ctypes.CDLL(str(path))
    source = (DEVICE / "cpp" / "classify.cc").read_text()
    functions = set(re.findall(r"\b(LiteRt(?:Create|Destroy|Get|Set|Lock|Unlock|Run)\w+)", source))
    assert len(functions) > 15
    assert [name for name in sorted(functions) if not hasattr(library, name)] == []
