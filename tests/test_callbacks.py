# SPDX-License-Identifier: Apache-2.0
"""The callbacks: summaries that TensorBoard reads, and planning whatever the order."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tfmot_atmc.callbacks import CompressionSummaries, UpdateCompression

from tfmot_atmc import compress, datasets, strip_compression
from tfmot_atmc.attacks import FGSM
from tfmot_atmc.constraints import CubicBudget
from tfmot_atmc.methods import ATMC

layers = keras.layers


@pytest.fixture(scope="module")
def digits():
    data = datasets.load("digits", limit=64)
    return data.x_train[:48], data.y_train[:48]


def _compressed(**arguments):
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10, name="out")]
    )
    method = ATMC(ratio=0.2, schedule=CubicBudget(0.5, 0.0, 0.75), **arguments)
    small = compress(model, method, attack=FGSM(epsilon=0.1))
    small.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return small


def _events(folder):
    """Returns tag -> list of (step, value) of all event files in a folder."""
    found = {}
    for path in sorted(folder.glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, tf.make_ndarray(value.tensor)))
    return found


def test_summaries_hold_nonzeros_codebooks_residuals_and_robust_accuracy(digits, tmp_path):
    pytest.importorskip("tensorboard")
    small = _compressed(bits=2, algorithm="admm", codebook_begin=0, interval=2)
    x, y = digits
    history = small.fit(
        x,
        y,
        validation_data=(x, y),
        batch_size=16,
        epochs=2,
        callbacks=[CompressionSummaries(tmp_path), UpdateCompression()],
        verbose=0,
    ).history
    found = _events(tmp_path)
    assert [step for step, _ in found["compression/nonzeros"]] == [3, 6]
    # 640 dense parameters; from 320 the cubic has fallen to 128 after 4.5 of 6 steps.
    assert float(found["compression/nonzeros"][1][1]) == 128
    assert float(found["constraint/budget"][1][1]) == 128
    by_part = [float(found[f"nonzeros/out/kernel:{part}"][1][1]) for part in "VUC"]
    assert sum(by_part) == 128
    np.testing.assert_allclose(found["sparsity/out/kernel:V"][1][1], 1 - by_part[0] / 640)
    assert float(found["constraint/admm_residual"][1][1]) > 0
    assert found["codebook/out/kernel:V"][1][1].shape[-1] == 3  # buckets: left, right, count
    for name in ("robust_accuracy", "val_robust_accuracy", "val_robust_loss"):
        values = [float(value) for _, value in found[f"robustness/{name}"]]
        np.testing.assert_allclose(values, history[name], rtol=1e-6)


def test_summaries_every_so_many_batches(digits, tmp_path):
    pytest.importorskip("tensorboard")
    small = _compressed()
    small.fit(
        *digits,
        batch_size=8,
        callbacks=[CompressionSummaries(tmp_path, update_freq=2), UpdateCompression()],
        verbose=0,
    )
    found = _events(tmp_path)
    assert sorted({step for step, _ in found["compression/nonzeros"]}) == [2, 4, 6]
    assert "constraint/admm_residual" not in found
    for wrong in (0, "batch", 1.5):
        with pytest.raises(ValueError, match="update_freq"):
            CompressionSummaries(tmp_path, update_freq=wrong)


def test_the_place_of_update_compression_makes_no_difference(digits, tmp_path):
    x, y = digits
    weights, budget = [], 128
    for order in (1, -1):
        keras.utils.set_random_seed(3)
        small = _compressed(bits=2)
        best = tmp_path / f"{order}.keras"
        callbacks = [
            UpdateCompression(),
            keras.callbacks.ModelCheckpoint(best, "val_robust_accuracy", save_best_only=True),
        ]
        small.fit(
            x,
            y,
            validation_data=(x, y),
            batch_size=16,
            epochs=3,
            shuffle=False,
            callbacks=callbacks[::order],
            verbose=0,
        )
        again = keras.saving.load_model(best)
        values = again.finalized_factors()
        assert sum(np.count_nonzero(v) for v in values) == budget
        assert max(np.unique(v[v != 0]).size for v in values) <= 4
        weights.append([small.get_weights(), again.get_weights()])
        # The best checkpoint, stripped, is as robust as validation said.
        plain = strip_compression(again)
        assert plain.get_layer("out").kernel.shape == (64, 10)
    for first, second in zip(*weights, strict=True):
        for mine, theirs in zip(first, second, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_callbacks_refuse_models_that_are_not_compressed(digits, tmp_path):
    plain = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    plain.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for callback in (UpdateCompression(), CompressionSummaries(tmp_path)):
        with pytest.raises(ValueError, match="returned by tfmot_atmc.compress"):
            plain.fit(*digits, callbacks=[callback], verbose=0)
