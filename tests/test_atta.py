# SPDX-License-Identifier: Apache-2.0
"""Perturbations carried across epochs: canvases, the store, the keyed batches, training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tfmot_atmc.augmentation import KeyedBatches
from tfmot_atmc.callbacks import KeepPerturbations

from tfmot_atmc import attacks, compress, datasets
from tfmot_atmc.attacks import ATTA, PGD, Keyed
from tfmot_atmc.attacks.windows import Canvas

layers = keras.layers
WEIGHTS = np.random.default_rng(0).normal(size=(48, 3)).astype("float32")


def linear(x):
    return tf.reshape(x, (-1, 48)) @ WEIGHTS


def two_classes(x):
    return linear(x)[:, :2]


def _images(count, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (count, 4, 4, 3)).astype("float32")


def _keyed(images, index, window=None):
    window = np.zeros((len(images), 3)) if window is None else window
    return Keyed(images, np.array(index, np.int32), np.array(window, np.int32))


# --- canvases -----------------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 2))


@given(shape=sizes, padding=st.integers(0, 3), factor=st.integers(1, 5), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_pooling_undoes_upsampling_and_averages_what_is_covered(shape, padding, factor, seed):
    canvas = Canvas(shape, padding, factor)
    generator = np.random.default_rng(seed)
    cells = generator.normal(size=(2, *canvas.cells)).astype("float32")
    large = canvas.upsample(tf.constant(cells))
    assert large.shape == (2, *canvas.shape)
    np.testing.assert_allclose(canvas.pool(large), cells, atol=1e-6)
    # By an oracle: each cell is the mean of the pixels of its block that exist.
    image = generator.normal(size=(2, *canvas.shape)).astype("float32")
    pooled = canvas.pool(tf.constant(image)).numpy()
    for row in range(canvas.cells[0]):
        for column in range(canvas.cells[1]):
            block = image[
                :,
                row * factor : (row + 1) * factor,
                column * factor : (column + 1) * factor,
            ]
            np.testing.assert_allclose(pooled[:, row, column], block.mean((1, 2)), atol=1e-5)


@given(
    shape=sizes,
    padding=st.integers(0, 3),
    share=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    mirrored=st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=25, deadline=None)
def test_windows_are_read_where_they_are_cropped_and_written_back_there(
    shape, padding, share, mirrored
):
    canvas = Canvas(shape, padding, 1)
    offsets = np.round(np.reshape(share, (2, 2)) * 2 * padding).astype(np.int32)
    window = tf.constant(np.concatenate([offsets, np.array(mirrored)[:, None]], axis=1), tf.int32)
    old = np.arange(2 * np.prod(canvas.shape), dtype="float32").reshape(2, *canvas.shape)
    height, width, _ = shape
    wanted = []
    for image, (top, left), mirror in zip(old, offsets, mirrored, strict=True):
        crop = image[top : top + height, left : left + width]
        wanted.append(crop[:, ::-1] if mirror else crop)
    read = canvas.read(tf.constant(old), window)
    np.testing.assert_array_equal(read, wanted)
    np.testing.assert_array_equal(canvas.write(tf.constant(old), read, window), old)
    # Another content is read back as it was written, and nothing changes outside of the window.
    new = canvas.write(tf.constant(old), -1 - read, window)
    np.testing.assert_array_equal(canvas.read(new, window), -1 - np.array(wanted))
    assert np.sum(new.numpy() != old) == 2 * np.prod(shape)


def test_canvas_of_a_known_size():
    # 224 pixels padded by four: 232 / 8 = 29, the papers' 29 x 29 x 3 numbers an image.
    assert Canvas((224, 224, 3), 4, 8).cells == (29, 29, 3)
    pooled = Canvas((3, 1, 1), 0, 2).pool(tf.reshape([1.0, 3.0, 5.0], (1, 3, 1, 1)))
    np.testing.assert_array_equal(tf.reshape(pooled, [-1]), [2, 5])


# --- the attack ---------------------------------------------------------------------------------


def test_a_visit_goes_on_where_the_last_one_ended():
    attack = ATTA(epsilon=0.1, num_examples=5, image_shape=(4, 4, 3), step_size=0.02)
    images, labels = _images(3), np.array([0, 1, 0])
    before = None
    for _ in range(11):
        result = attack(two_classes, _keyed(images, [4, 0, 2]), labels)
        change = result.image - images
        assert np.abs(change).max() <= 0.1 + 1e-6
        assert result.image.numpy().min() >= 0 and result.image.numpy().max() <= 1
        np.testing.assert_array_equal(result.index, [4, 0, 2])
        if before is not None:
            moved = np.abs(change - before)
            assert moved.max() <= 0.02 + 1e-3  # and float16
        before = change
    # From anywhere in the ball ten steps reach its far side: the best corner for two classes.
    best = PGD(epsilon=0.1, steps=30, step_size=0.02)(two_classes, images, labels)
    np.testing.assert_allclose(result.image, best, atol=1e-6)
    np.testing.assert_array_equal(attack.visits, [11, 0, 11, 0, 11])
    np.testing.assert_array_equal(attack.store[1], np.zeros((4, 4, 3)))
    np.testing.assert_allclose(attack.store.numpy()[[4, 0, 2]], change, atol=1e-4)


def test_the_same_seed_gives_the_same_store_and_another_another():
    def run(seed, order=(0, 1, 2)):
        attack = ATTA(epsilon=0.1, num_examples=3, image_shape=(4, 4, 3), steps=2, seed=seed)
        attack(linear, _keyed(_images(3), order), np.array([0, 1, 2]))
        return attack.store.numpy()

    np.testing.assert_array_equal(run(0), run(0))
    np.testing.assert_array_equal(run(0, (2, 0, 1)), run(0)[[1, 2, 0]])
    assert (run(0) != run(1)).any()


def test_perturbations_follow_the_crop_and_the_mirror():
    # Each pixel's best change has a sign of its own, so a wrong window would show.
    attack = ATTA(epsilon=0.1, num_examples=1, image_shape=(4, 4, 3), padding=1, step_size=0.0)
    image = np.full((1, 4, 4, 3), 0.5, "float32")
    label = np.array([0])
    first = attack(linear, _keyed(image, [0], [[1, 1, 0]]), label).image[0] - 0.5
    mirrored = attack(linear, _keyed(image, [0], [[1, 1, 1]]), label).image[0] - 0.5
    np.testing.assert_allclose(mirrored, np.array(first)[:, ::-1], atol=1e-4)
    moved = attack(linear, _keyed(image, [0], [[0, 2, 0]]), label).image[0] - 0.5
    np.testing.assert_allclose(moved[1:, :-1], first[:-1, 1:], atol=1e-4)
    assert np.abs(attack.store.numpy()).max() <= 0.1


def test_downsampled_perturbations_start_within_the_ball_and_still_gain():
    attack = ATTA(
        epsilon=0.1, num_examples=2, image_shape=(4, 4, 3), padding=1, downsample=4, step_size=0.03
    )
    assert tuple(attack.store.shape) == (2, 2, 2, 3)
    images, labels = _images(2), np.array([0, 1])
    for top in (0, 1, 2, 1):
        result = attack(linear, _keyed(images, [0, 1], [[top, 1, top % 2]] * 2), labels)
        assert np.abs(result.image - images).max() <= 0.1 + 1e-6
    # By now more than one step's worth: what was stored was of use.
    single = ATTA(epsilon=0.1, num_examples=2, image_shape=(4, 4, 3), step_size=0.03)
    once = single(linear, _keyed(images, [0, 1]), labels)
    loss = [attacks.cross_entropy(tf.constant(labels), linear(r.image)) for r in (result, once)]
    assert float(tf.reduce_mean(loss[0])) > float(tf.reduce_mean(loss[1]))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_first_visit_takes_its_own_number_of_steps_and_only_where_it_is_one(compiled):
    images, labels = _images(3) * 0.2 + 0.4, np.array([0, 1, 0])
    options = {"epsilon": 0.3, "num_examples": 4, "image_shape": (4, 4, 3), "step_size": 0.05}

    def visits(order, **more):
        attack = ATTA(**options, **more)
        call = tf.function(attack.__call__) if compiled else attack.__call__
        for rows in order:
            call(two_classes, _keyed(images[rows], rows), labels[rows], seed=3)
        return attack.store.numpy()

    long = visits([[0, 1]], first_steps=4)
    np.testing.assert_array_equal(long, visits([[0, 1]], steps=4))
    few = visits([[0, 1]], steps=2)
    np.testing.assert_array_equal(visits([[0, 1]], steps=2, first_steps=1), few)
    # Example 2 comes when 0 and 1 were there before: they go on by one step, it begins by four.
    mixed = visits([[0, 1], [0, 1, 2]], first_steps=4)
    again = visits([[0, 1], [0, 1]], first_steps=4)
    np.testing.assert_array_equal(mixed[[0, 1]], again[[0, 1]])
    assert 0.04 < np.abs(mixed[0] - long[0]).max() < 0.051
    once = visits([[0, 1], [0, 1, 2]])[2]
    moved = np.abs(mixed[2] - once)[np.abs(mixed[2]) < 0.299]  # not where the ball ends
    np.testing.assert_allclose(moved, 0.15, atol=1e-3)
    reset = visits([[0], [0]], first_steps=4, reset_every=1)
    np.testing.assert_array_equal(reset, visits([[0]], first_steps=4))


def test_reset_draws_perturbations_anew():
    attack = ATTA(epsilon=0.1, num_examples=1, image_shape=(4, 4, 3), step_size=0.0, reset_every=2)
    keyed, label = _keyed(_images(1) * 0.5 + 0.25, [0]), np.array([0])
    runs = [attack(linear, keyed, label, seed=seed).image.numpy() for seed in range(5)]
    same = [np.abs(a - b).max() < 1e-3 for a, b in zip(runs, runs[1:], strict=False)]
    assert same == [True, False, True, False]
    attack.reset()
    np.testing.assert_array_equal(attack.visits, [0])


def test_plain_inputs_are_attacked_without_the_store():
    attack = ATTA(epsilon=0.1, num_examples=1, image_shape=(4, 4, 3))
    images, labels = _images(4), np.array([0, 1, 2, 0])
    first, second = (attack(linear, images, labels) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert 0 < np.abs(first - images).max() <= 0.1 + 1e-6
    np.testing.assert_array_equal(attack.visits, [0])
    with pytest.raises(ValueError, match="KeyedBatches"):
        attack.inputs(images, training=True)


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(ValueError, match="1,920,040,000 bytes.*`downsample=4` fits"):
        # 10,000 x (2 x 200 x 160 x 3 + 4) bytes
        ATTA(epsilon=0.1, num_examples=10000, image_shape=(200, 160, 3), max_bytes=2**27)
    arguments = {"epsilon": 0.1, "num_examples": 2, "image_shape": (4, 4, 3)}
    for wrong, match in (
        ({"steps": 0}, "steps"),
        ({"num_examples": 0}, "num_examples"),
        ({"reset_every": 0}, "reset_every"),
        ({"downsample": 0}, "downsample"),
        ({"image_shape": (4,), "padding": 1}, "image_shape"),
    ):
        with pytest.raises(ValueError, match=match):
            ATTA(**{**arguments, **wrong})
    with pytest.raises(TypeError, match="norm"):
        ATTA(norm="l2", **arguments)
    attack = ATTA(**arguments)
    with pytest.raises(ValueError, match=r"`index` must lie in \[0, 2\)"):
        attack(linear, _keyed(_images(1), [2]), [0])
    with pytest.raises(ValueError, match="canvas"):
        attack(linear, _keyed(_images(1), [0], [[0, 1, 0]]), [0])
    with pytest.raises(ValueError, match="image_shape"):
        attack(linear, _keyed(_images(2).reshape(2, 2, 8, 3), [0, 1]), [0, 1])


def test_an_attack_without_data_attacks_plain_inputs_and_can_be_sized():
    attack = ATTA(epsilon=0.1, steps=2, padding=1, seed=3)
    x, labels = _images(2), np.array([0, 1])
    plain_result = attack(linear, x, labels)
    assert np.abs(plain_result - x).max() <= 0.1 + 1e-6
    sized = attack.sized(2, (4, 4, 3))
    assert (sized.num_examples, sized.image_shape, sized.padding) == (2, (4, 4, 3), 1)
    assert attack.sized(2, (4, 4, 3), padding=0).padding == 0
    np.testing.assert_array_equal(plain_result, sized(linear, x, labels))
    assert attacks.get(attacks.serialize(attack)).get_config() == attack.get_config()
    assert attack.with_loss(attack.loss).num_examples is None
    with pytest.raises(ValueError, match=r"attack\.sized\(len\(x\), x\.shape\[1:\]\)"):
        attack(linear, _keyed(x, [0, 1]), labels)
    with pytest.raises(ValueError, match=r"attack\.sized"):
        KeyedBatches(x, labels, attack=attack, batch_size=2)
    with pytest.raises(ValueError, match="both `num_examples` and `image_shape`, or neither"):
        ATTA(epsilon=0.1, num_examples=2)


def test_vectors_are_stored_as_they_are():
    attack = ATTA(epsilon=0.1, num_examples=2, image_shape=(48,), step_size=0.1)
    x = _images(2).reshape(2, 48)
    for _ in range(3):
        result = attack(linear, _keyed(x, [1, 0]), [0, 1])
    np.testing.assert_allclose(attack.store.numpy()[[1, 0]], result.image - x, atol=1e-4)


def test_config_and_file_give_the_same_attack_again(tmp_path):
    attack = ATTA(
        epsilon=[0.1, 0.2, 0.1], num_examples=2, image_shape=(4, 4, 3), padding=1, downsample=3
    )
    twin = attacks.get(attacks.serialize(attack))
    assert twin.get_config() == attack.get_config() and "first_steps" not in twin.get_config()
    longer = attacks.get(attacks.serialize(ATTA(epsilon=0.1, first_steps=3)))
    assert longer.first_steps == 3 == longer.sized(2, (4, 4, 3)).first_steps
    keyed, labels = _keyed(_images(2), [0, 1], [[0, 1, 1], [2, 2, 0]]), np.array([0, 1])
    attack(linear, keyed, labels)
    attack.save(tmp_path / "store.npz")
    twin.load(tmp_path / "store.npz")
    results = [a(linear, keyed, labels, seed=5).image for a in (attack, twin)]
    np.testing.assert_array_equal(*results)
    other = ATTA(epsilon=0.1, num_examples=2, image_shape=(4, 4, 3))
    with pytest.raises(ValueError, match="store.*shape"):
        other.load(tmp_path / "store.npz")


# --- the batches --------------------------------------------------------------------------------


def test_keyed_batches_hold_each_example_once_with_the_key_of_its_crop():
    images = _images(10)
    attack = ATTA(epsilon=0.1, num_examples=10, image_shape=(4, 4, 3), padding=2)
    arguments = {"attack": attack, "batch_size": 4, "flip": True, "fill": 0.5, "seed": 3}
    batches = KeyedBatches(images, np.arange(10), epoch=lambda: 7, **arguments)
    again = KeyedBatches(images, np.arange(10), epoch=lambda: 7, **arguments)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=0.5)
    canvas = Canvas((4, 4, 3), 2, 1)
    seen, windows = [], []
    again.on_epoch_begin()
    for number in range(3):
        keyed, labels = batches[number]
        np.testing.assert_array_equal(labels, keyed.index)
        wanted = canvas.read(tf.constant(padded[keyed.index]), tf.constant(keyed.window))
        np.testing.assert_array_equal(keyed.image, wanted)
        for mine, theirs in zip(keyed, again[number][0], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        seen.extend(labels)
        windows.append(keyed.window)
    assert sorted(seen) == list(range(10))
    window = np.concatenate(windows)
    assert window[:, :2].max() <= 4 and len(np.unique(window[:, :2])) > 2
    assert set(window[:, 2]) == {0, 1}
    with pytest.raises(ValueError, match="10 examples"):
        KeyedBatches(images[:5], np.arange(5), **arguments)
    with pytest.raises(TypeError, match="ATTA"):
        KeyedBatches(images, np.arange(10), **{**arguments, "attack": PGD(epsilon=0.1)})


# --- training -----------------------------------------------------------------------------------


class Killed(Exception):
    """Stands for the end of the process."""


class _Kill(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise Killed


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits", limit=96)


def _run(data, folder=None, kill=None, kill_first=False):
    """Trains for three epochs; returns the weights and the store."""
    keras.utils.set_random_seed(5)
    attack = ATTA(
        epsilon=0.2, num_examples=96, image_shape=(8, 8, 1), padding=1, downsample=2, seed=1
    )
    plain = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    model = compress(plain, "da", attack=attack)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = KeyedBatches(
        data.x_train,
        data.y_train,
        attack=attack,
        batch_size=40,
        flip=True,
        epoch=lambda: model.step // 3,
    )
    callbacks = []
    if folder is not None:
        callbacks = [KeepPerturbations(folder), keras.callbacks.BackupAndRestore(folder / "b")]
        if kill is not None:
            callbacks.insert(1 if kill_first else 2, _Kill(kill))
    model.fit(batches, epochs=3, callbacks=callbacks, verbose=0)
    return model, [*model.get_weights(), attack.store.numpy(), attack.visits.numpy()]


def test_an_interrupted_run_resumes_to_the_same_result(digits, tmp_path):
    _, unbroken = _run(digits)
    np.testing.assert_array_equal(unbroken[-1], np.full(96, 3))
    # Killed after an epoch's backup, and then between the store's file and the backup.
    for epoch, kill_first in ((1, False), (2, True)):
        with pytest.raises(Killed):
            _run(digits, tmp_path, kill=epoch, kill_first=kill_first)
    assert len(list(tmp_path.glob("perturbations-*.npz"))) == 2
    _, resumed = _run(digits, tmp_path)
    for mine, theirs in zip(unbroken, resumed, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not list(tmp_path.glob("perturbations-*.npz"))


def test_a_run_resumed_without_its_perturbations_says_so(digits, tmp_path):
    with pytest.raises(Killed):
        _run(digits, tmp_path, kill=1)
    (tmp_path / "perturbations-6.npz").unlink()
    with pytest.raises(ValueError, match=r"steps \[3\].*step 6"):
        _run(digits, tmp_path)


def test_training_evaluates_on_plain_and_keyed_images_and_refuses_plain_training(digits):
    model, _ = _run(digits)
    visits = model.attack.visits.numpy()
    plain = model.evaluate(digits.x_test, digits.y_test, verbose=0, return_dict=True)
    assert set(plain) == {"loss", "robust_loss", "robust_accuracy"}
    unaugmented = KeyedBatches(
        digits.x_train, digits.y_train, attack=model.attack, batch_size=32, seed=2
    )
    model.evaluate(unaugmented, verbose=0)
    np.testing.assert_array_equal(model.attack.visits, visits)
    with pytest.raises(ValueError, match="KeyedBatches"):
        model.fit(digits.x_train, digits.y_train, verbose=0)


def test_only_a_model_trained_with_atta_has_perturbations_to_keep(digits, tmp_path):
    plain = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])
    plain.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"attack=ATTA"):
        plain.fit(
            digits.x_train, digits.y_train, callbacks=[KeepPerturbations(tmp_path)], verbose=0
        )


def test_a_regression_shares_its_store_with_the_attack_on_its_own_loss():
    attack = ATTA(epsilon=0.2, num_examples=8, image_shape=(3,))
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model = compress(plain, "da", attack=attack)
    model.compile("sgd", "mse")
    x, y = np.full((8, 3), 0.5, "float32"), np.zeros((8, 2), "float32")
    model.fit(KeyedBatches(x, y, attack=attack, batch_size=4), epochs=2, verbose=0)
    np.testing.assert_array_equal(attack.visits, np.full(8, 2))
    assert 0 < np.abs(attack.store.numpy()).max() <= 0.2
