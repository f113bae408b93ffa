# SPDX-License-Identifier: Apache-2.0
"""Whole networks of keras.applications, from compression to the file that is deployed."""

import keras
import numpy as np
import pytest
from tfmot_atmc.callbacks import UpdateCompression

from tfmot_atmc import compress, export_tflite, strip_compression
from tfmot_atmc.attacks import FGSM

_OPTIONS = {"weights": None, "input_shape": (32, 32, 3), "classes": 10}
_NETWORKS = {
    "MobileNetV2": ({"alpha": 0.35}, 1.0, 17),
    "ResNet50": ({}, 1.0, 0),
    # Its first layers take 0..255 and scale by themselves.
    "EfficientNetB0": ({}, 255.0, 16),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _NETWORKS)
def test_network_is_trained_stripped_saved_and_exported(name, tmp_path):
    extra, top, depthwise = _NETWORKS[name]
    network = getattr(keras.applications, name)
    model = network(**_OPTIONS, **extra, classifier_activation=None)
    rng = np.random.default_rng(0)
    x = (top * rng.uniform(size=(16, 32, 32, 3))).astype(np.float32)
    y = rng.integers(0, 10, 16)
    attack = FGSM(epsilon=top * 2 / 255, bounds=(0, top))
    small = compress(model, "atmc", ratio=0.1, schedule="constant", attack=attack)
    small.compile(
        keras.optimizers.SGD(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = small.fit(x, y, batch_size=8, callbacks=[UpdateCompression()], verbose=0).history
    assert np.isfinite(history["loss"][0]) and "robust_accuracy" in history

    report = small.compression_report()
    assert report.nonzeros == int(0.1 * report.dense_parameters)
    actions = [layer.action for layer in report.layers]
    assert actions.count("compressed") == depthwise
    left = {layer.type for layer in report.layers if layer.action == "left alone"}
    assert left <= {"BatchNormalization", "Normalization"}

    plain = strip_compression(small)
    expected = small.predict(x[:4], verbose=0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(plain.predict(x[:4], verbose=0), expected, atol=1e-4 * scale)
    plain.save(tmp_path / "plain.keras")
    again = keras.saving.load_model(tmp_path / "plain.keras")
    np.testing.assert_allclose(again.predict(x[:4], verbose=0), expected, atol=1e-4 * scale)
    exported = export_tflite(
        plain, tmp_path / "net.tflite", inputs=x[:4], tolerance=1e-3, measure_latency=False
    )
    assert (tmp_path / "net.tflite").stat().st_size > 0 and str(exported)
