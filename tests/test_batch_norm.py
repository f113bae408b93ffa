# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation is deployed with the statistics of the weights that are deployed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmot_atmc as atmc
from tfmot_atmc.compression.batch_norm import batches_of, losses_part, normalisations

LAYERS = keras.layers


def _network(momentum=0.99, dropout=0.0):
    return keras.Sequential(
        [
            keras.Input((5,)),
            LAYERS.Dense(8, name="a"),
            LAYERS.BatchNormalization(momentum=momentum, name="norm"),
            LAYERS.ReLU(),
            LAYERS.Dropout(dropout, seed=1),
            LAYERS.Dense(3, name="b"),
        ]
    )


def _data(count=256):
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (count, 5)).astype("float32")
    return x, (x @ rng.normal(0, 1, (5, 3))).argmax(-1)


def test_statistics_are_the_averages_over_batches():
    model, (x, _) = _network(), _data(64)
    assert atmc.reestimate_batch_norm(model, tf.data.Dataset.from_tensor_slices(x).batch(16)) == 1
    before = np.asarray(model.layers[0](x)).reshape(4, 16, 8)
    norm = model.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean, before.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, before.var(axis=1).mean(0), rtol=1e-3)
    assert norm.momentum == 0.99


def test_other_state_and_frozen_layers_stay_as_they_were():
    model, (x, y) = _network(dropout=0.5), _data()
    norm = model.get_layer("norm")
    own = {id(norm.moving_mean), id(norm.moving_variance)}
    kept = [v.numpy() for v in model.weights if id(v) not in own]
    seeds = [v.numpy() for v in model.non_trainable_variables if "seed" in v.path]
    assert atmc.reestimate_batch_norm(model, (x, y), batches=3) == 1
    left = [v for v in model.weights if id(v) not in own]
    for before, after in zip(kept, left, strict=True):
        np.testing.assert_array_equal(before, after)
    after = [v.numpy() for v in model.non_trainable_variables if "seed" in v.path]
    np.testing.assert_array_equal(seeds, after)
    norm.trainable = False
    assert normalisations(model) == [] and atmc.reestimate_batch_norm(model, x) == 0


def test_data_of_any_kind_gives_batches_and_a_generator_is_refused():
    x, y = _data(50)
    arrays = batches_of((x, y), 2, 20)
    assert [len(batch[0]) for batch in arrays] == [20, 20]
    again = batches_of((x, y), 2, 20)
    np.testing.assert_array_equal(arrays[1][0], again[1][0])
    rows = {tuple(row): label for row, label in zip(x.tolist(), y.tolist(), strict=True)}
    assert [rows[tuple(row)] for row in arrays[0][0].tolist()] == arrays[0][1].tolist()
    batches = atmc.datasets.EpochBatches(x, y, batch_size=25)
    assert [len(batch[1]) for batch in batches_of(batches, 5)] == [25, 25]
    named = batches_of(({"a": x, "b": x}, y), 1, 10)
    assert named[0][0]["b"].shape == (10, 5)
    assert batches_of((batch for batch in arrays), 2) == []
    with pytest.raises(ValueError, match="read only once"):
        atmc.reestimate_batch_norm(_network(), (batch for batch in arrays))


@pytest.mark.parametrize("attack", [None, atmc.attacks.PGD(epsilon=0.1, bounds=(None, None))])
def test_what_is_stripped_has_the_statistics_of_its_own_weights(attack):
    x, y = _data()
    small = atmc.compress(_network(), "atmc", ratio=0.5, bits=3, attack=attack, seed=1)
    small.compile(
        keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    small.fit(x, y, epochs=2, verbose=0, callbacks=[atmc.callbacks.UpdateCompression()])
    plain = atmc.strip_compression(small)
    norm = plain.get_layer("norm")
    seen = np.asarray(plain.layers[0](x))
    # The averages over batches of 32 are near those over all examples, attacked a little or not.
    np.testing.assert_allclose(norm.moving_mean, seen.mean(0), atol=0.35)
    np.testing.assert_allclose(norm.moving_variance, seen.var(0), rtol=0.25, atol=0.05)
    assert norm.momentum == 0.99


def test_validation_sees_what_is_stripped():
    x, y = _data()
    small = atmc.compress(_network(), "al0", ratio=0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile(keras.optimizers.Adam(0.02), loss)
    done = [atmc.callbacks.UpdateCompression()]
    history = small.fit(x, y, epochs=2, validation_data=(x, y), verbose=0, callbacks=done)
    plain = atmc.strip_compression(small)
    deployed = float(loss(y, plain.predict(x, verbose=0)))
    assert deployed == pytest.approx(history.history["val_loss"][-1], rel=1e-4)


def test_a_loss_that_is_worse_in_inference_is_told():
    batches = [0, 1, 2, 3]
    said = losses_part(lambda batch, training: 0.5 if training else 1.7, batches, 2.0)
    assert "1.7" in said and "0.5" in said and "reestimate_batch_norm" in said
    assert losses_part(lambda batch, training: 0.5 if training else 0.7, batches, 2.0) is None
    assert losses_part(lambda batch, training: 0.001 if training else 0.01, batches, 2.0) is None
    assert losses_part(lambda batch, training: 2.0 if training else 0.5, batches, None) is None
