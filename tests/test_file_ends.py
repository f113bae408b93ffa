# SPDX-License-Identifier: Apache-2.0
"""The ends of a .tflite file: integers for cameras, names of tensors and classes, tolerances."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import tfmot_atmc as atmc
from tfmot_atmc.export import list_operators, read_notes
from tfmot_atmc.export.tflite.calibration import other_range
from tfmot_atmc.export.tflite.notes import short_names

LAYERS = keras.layers


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="camera"),
            LAYERS.Conv2D(4, 3, activation="relu", name="first"),
            LAYERS.BatchNormalization(name="norm"),
            LAYERS.Flatten(),
            LAYERS.Dense(3, name="scores"),
        ]
    )


@pytest.fixture(scope="module")
def images():
    found = np.random.default_rng(0).random((64, 8, 8, 1), dtype="float32")
    found[0, 0, 0], found[0, 0, 1] = 0.0, 1.0
    return found


def _export(model, path, images, **arguments):
    more = {"values": "full_int8", "representative": images, "measure_latency": False}
    return atmc.export_tflite(model, path, **more, **arguments)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_a_camera_s_bytes_go_in_as_they_are(model, images, tmp_path, kind):
    path = tmp_path / "camera.tflite"
    _export(model, path, images, input_type=kind, output_type=kind, class_names=["a", "b", "c"])
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    given, returned = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert np.dtype(given["dtype"]).name == np.dtype(returned["dtype"]).name == kind
    scale, zero_point = given["quantization"]
    assert scale == pytest.approx(1 / 255, rel=1e-3) and zero_point == (
        0 if kind == "uint8" else -128
    )
    notes = read_notes(path)
    assert notes["class_names"] == ["a", "b", "c"]
    assert notes["inputs"] == [{"type": kind, "scale": scale, "zero_point": zero_point}]
    pixels = np.rint(images * 255)
    stored = (pixels + zero_point).astype(kind)
    interpreter.set_tensor(given["index"], stored[:1])
    interpreter.invoke()
    out_scale, out_zero = returned["quantization"]
    real = (interpreter.get_tensor(returned["index"]).astype("float32") - out_zero) * out_scale
    expected = model.predict(pixels[:1] / 255, verbose=0)
    np.testing.assert_allclose(real, expected, atol=0.1 * np.abs(expected).max())
    both = [atmc.export.TFLiteModel(path)(array)[0] for array in (images, stored)]
    np.testing.assert_allclose(both[0], both[1], atol=3 * out_scale)
    with pytest.raises(FileNotFoundError):
        read_notes(tmp_path / "nothing.tflite")


def test_files_of_floats_have_no_notes_and_those_of_evaluation_agree(model, images, tmp_path):
    path = tmp_path / "floats.tflite"
    report = atmc.export_tflite(model, path, inputs=images, measure_latency=False)
    assert read_notes(path) == {} and report.max_difference < 1e-5
    _export(model, tmp_path / "i.tflite", images, input_type="uint8", output_type="int8")
    predict = atmc.evaluation.targets.as_target(str(tmp_path / "i.tflite")).predict
    expected = model.predict(images, verbose=0)
    assert (predict(images).argmax(-1) == expected.argmax(-1)).mean() > 0.9


def test_weights_keep_their_layers_names_unless_bytes_are_asked_for(model, images, tmp_path):
    def names(path):
        interpreter = Interpreter(str(path))
        return {tensor["name"] for tensor in interpreter.get_tensor_details()}, interpreter

    named = atmc.export_tflite(model, tmp_path / "n.tflite", measure_latency=False)
    found, interpreter = names(tmp_path / "n.tflite")
    assert {"first", "scores"} <= found
    assert interpreter.get_signature_list()["serving_default"]["inputs"] == ["camera"]
    small = atmc.export_tflite(model, tmp_path / "s.tflite", max_bytes="1MB", measure_latency=False)
    assert not {"first", "scores"} & names(tmp_path / "s.tflite")[0]
    assert 0 < named.bytes - small.bytes < 100
    forced = atmc.export_tflite(model, tmp_path / "f.tflite", names=False, measure_latency=False)
    assert forced.bytes == small.bytes
    assert short_names({(0, 1): "m/a/conv;m/b/add", (0, 2): "x"}, {x: x for x in "abm"}) == {
        (0, 1): "b"
    }


def test_operators_are_listed(model, images, tmp_path):
    _export(model, tmp_path / "i.tflite", images, input_type="uint8")
    found = list_operators(tmp_path / "i.tflite")
    assert found["CONV_2D"] >= 1 and "QUANTIZE" in found
    assert sum(found.values()) >= 4


def test_what_cannot_be_is_refused_in_one_line(model, images, tmp_path):
    path = tmp_path / "x.tflite"
    with pytest.raises(ValueError, match="input_type.*full_int8"):
        atmc.export_tflite(model, path, input_type="uint8")
    with pytest.raises(ValueError, match="output_type.*'int16'"):
        _export(model, path, images, output_type="int16")
    with pytest.raises(ValueError, match="each of the 3 outputs. Received 2 names"):
        atmc.export_tflite(model, path, class_names=["a", "b"])
    with pytest.raises(ValueError, match="different units.*255"):
        _export(model, path, 255 * images, inputs=images)
    with pytest.raises(atmc.export.ExportError, match="tolerance="):
        _export(model, path, images, tolerance=1e-9)
    assert not path.exists()


def test_a_model_that_takes_bytes_is_trained_under_attack():
    layers = [LAYERS.Rescaling(1 / 255), LAYERS.Flatten(), LAYERS.Dense(3, name="scores")]
    model = keras.Sequential([keras.Input((4, 4, 1), dtype="uint8", name="camera"), *layers])
    x = np.random.default_rng(0).integers(0, 256, (32, 4, 4, 1)).astype("uint8")
    attack = atmc.attacks.PGD(epsilon=8, steps=2, bounds=(0, 255))
    small = atmc.compress(model, "atmc", ratio=0.5, attack=attack)
    small.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    y = np.arange(32) % 3
    done = [atmc.callbacks.UpdateCompression()]
    history = small.fit(x, y, validation_data=(x, y), verbose=0, callbacks=done).history
    assert history["val_robust_loss"][0] > history["val_loss"][0]
    plain = atmc.strip_compression(small)
    assert [layer.name for layer in plain.layers][-1] == "scores"
    assert plain.inputs[0].dtype == "float32" and plain.inputs[0].name == "camera"
    np.testing.assert_allclose(plain(x.astype("float32")), plain(x), rtol=1e-6)
    assert model.inputs[0].dtype == "uint8"


@pytest.mark.parametrize("kind", ["batch", "adapted"])
def test_calibration_images_in_other_units_than_those_of_training_are_told(kind):
    x = np.random.default_rng(0).random((32, 6, 6, 1), dtype="float32")
    norm = LAYERS.BatchNormalization(momentum=0.0) if kind == "batch" else LAYERS.Normalization()
    model = keras.Sequential([keras.Input((6, 6, 1)), norm, LAYERS.Conv2D(2, 3)])
    if kind == "batch":
        assert other_range(model, [255 * x]) == ()  # it has seen nothing yet
        model(x, training=True)
    else:
        norm.adapt(x)
    assert other_range(model, [x]) == other_range(model, [2 * x]) == ()
    for factor, told in ((255, "times as much"), (1 / 255, "divided by 255")):
        (text,) = other_range(model, [factor * x])
        assert norm.name in text and told in text and "\n" not in text
    assert other_range(model, [255 * x[:4]]) == ()  # too few to say
