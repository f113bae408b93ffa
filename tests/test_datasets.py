# SPDX-License-Identifier: Apache-2.0
import dataclasses
import random
import sys

import keras
import numpy as np
import pytest

from tfmot_atmc import datasets, models
from tfmot_atmc.datasets import made_up
from tfmot_atmc.datasets.splits import chosen_fraction


def test_digits_are_three_disjoint_balanced_splits_in_the_unit_interval():
    data = datasets.load("digits", validation_fraction=0.1)
    sizes = [len(x) for x in (data.x_train, data.x_validation, data.x_test)]
    assert sizes == [1294, 144, 359]
    assert (data.input_shape, data.num_classes, data.name) == ((8, 8, 1), 10, "digits")
    for images, labels in [
        (data.x_train, data.y_train),
        (data.x_validation, data.y_validation),
        (data.x_test, data.y_test),
    ]:
        assert images.dtype == "float32" and labels.dtype == "int64"
        assert images.min() == 0 and images.max() == 1
        share = np.bincount(labels, minlength=10) / len(labels)
        assert np.abs(share - 0.1).max() < 0.015
    everything = np.concatenate([data.x_train, data.x_validation, data.x_test]).reshape(1797, -1)
    assert len(np.unique(everything, axis=0)) == 1797
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"


def test_the_seed_moves_the_validation_split_and_leaves_the_test_split():
    first, same, other = (datasets.load("digits", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.x_validation, same.x_validation)
    np.testing.assert_array_equal(first.x_train, same.x_train)
    assert not np.array_equal(first.x_validation, other.x_validation)
    np.testing.assert_array_equal(first.x_test, other.x_test)


def test_limit_takes_the_first_examples_and_never_mixes_splits():
    whole, few = datasets.load("digits"), datasets.load("digits", limit=20)
    assert [len(x) for x in (few.x_train, few.x_validation, few.x_test)] == [20, 20, 20]
    np.testing.assert_array_equal(few.x_validation, whole.x_validation[:20])
    np.testing.assert_array_equal(few.x_train, whole.x_train[:20])
    assert len(datasets.load("digits", validation_fraction=0, limit=5).x_validation) == 0


def test_split_takes_its_share_of_each_class_exactly():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    rest, chosen = chosen_fraction(labels, 0.1, seed=4)
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [6, 3, 1])
    np.testing.assert_array_equal(np.sort(np.concatenate([rest, chosen])), np.arange(100))


def test_wrong_arguments_say_what_is_possible(monkeypatch):
    with pytest.raises(ValueError, match="validation_fraction"):
        datasets.load("digits", validation_fraction=1.0)
    with pytest.raises(ValueError, match="limit"):
        datasets.load("digits", limit=0)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="pip install"):
        datasets.load("mnist")


def test_an_unknown_name_is_answered_with_the_nearest_known_ones():
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(ValueError, match="Did you mean .*cifar10.*Known are digits, mnist"):
        datasets.load("cifar_10")


def test_data_that_is_neither_prepared_nor_downloadable_says_so(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def refuse(*arguments, **keywords):
        raise ConnectionError("no route")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)
    with pytest.raises(RuntimeError, match="ConnectionError: no route.*TFDS_DATA_DIR"):
        datasets.load("mnist", data_dir=tmp_path)


def _define_tiny_dataset(tfds, *, shape, classes, supervised_keys=("image", "label")):
    """Registers a dataset "tiny" of generated images; defining the class is what registers it."""

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        SKIP_REGISTERING = False

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=shape),
                "label": tfds.features.ClassLabel(num_classes=classes),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=supervised_keys,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(50), "test": self._generate_examples(20)}

        def _generate_examples(self, count):
            side = [size or 4 for size in shape]
            for index in range(count):
                image = np.full(side, 255 * (index % 2), dtype="uint8")
                yield index, {"image": image, "label": index % classes}

    return Tiny


@pytest.fixture
def tiny(request, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources")
    builder = _define_tiny_dataset(tfds, **request.param)
    yield request.param
    from tensorflow_datasets.core import registered

    registered._DATASET_REGISTRY.pop(builder.name)


@pytest.mark.parametrize(
    "tiny",
    [{"shape": (32, 32, 3), "classes": 10}, {"shape": (16, 16, 1), "classes": 100}],
    indirect=True,
)
def test_any_dataset_of_images_is_found_by_name_and_prepared_once(tiny, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    data = datasets.load("tiny", validation_fraction=0.1, data_dir=tmp_path)
    assert (data.input_shape, data.num_classes) == (tiny["shape"], tiny["classes"])
    assert [len(x) for x in (data.x_train, data.x_validation, data.x_test)] == [45, 5, 20]
    assert data.x_train.dtype == "float32" and data.y_train.dtype == "int64"
    np.testing.assert_array_equal(data.x_test[:, 0, 0, 0], data.y_test % 2)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", None)
    again = datasets.load("tiny", validation_fraction=0.1, data_dir=tmp_path)
    np.testing.assert_array_equal(again.x_train, data.x_train)


@pytest.mark.parametrize(
    ("tiny", "message"),
    [
        ({"shape": (None, None, 3), "classes": 2}, "differ in size"),
        (
            {"shape": (4, 4, 3), "classes": 2, "supervised_keys": None},
            "not an image classification",
        ),
    ],
    indirect=["tiny"],
)
def test_data_of_another_kind_is_refused_before_it_is_downloaded(tiny, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        datasets.load("tiny", data_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_mnist_has_its_known_statistics(mnist):
    assert (len(mnist.x_train), len(mnist.x_validation), len(mnist.x_test)) == (
        58_800,
        1_200,
        10_000,
    )
    images = np.concatenate([mnist.x_train, mnist.x_validation])
    assert images.mean(dtype="float64") == pytest.approx(0.13066, abs=1e-5)
    assert mnist.input_shape == (28, 28, 1)


def _batches(count=10, **kwargs):
    x = np.arange(count, dtype="float32")
    return datasets.EpochBatches(x, np.arange(count), **{"batch_size": 3, "seed": 7, **kwargs})


class _Recorder(keras.Model):
    """Keeps the labels of each batch it is trained on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def train_step(self, data):
        self.seen.append(data[1].numpy().tolist())
        return {"loss": 0.0}


def _fit(batches, **kwargs):
    model = _Recorder()
    model.compile(run_eagerly=True)
    model.fit(batches, verbose=0, **kwargs)
    return model.seen


def test_every_epoch_is_another_order_of_all_examples():
    seen = _fit(_batches(), epochs=2)
    first, second = sum(seen[:4], []), sum(seen[4:], [])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert [len(batch) for batch in seen[:4]] == [3, 3, 3, 1]
    assert all(len(batch) == 3 for batch in _fit(_batches(drop_remainder=True)))


def test_a_resumed_training_sees_the_batches_of_an_uninterrupted_one():
    whole = _fit(_batches(), epochs=3)
    resumed = _fit(_batches(epoch=lambda: 2), epochs=1)
    assert resumed == whole[8:]


def test_the_order_does_not_hang_on_fits_own_shuffling():
    random.seed(1)
    shuffled = _fit(_batches(count=60), shuffle=True)
    random.seed(2)
    assert (
        _fit(_batches(count=60), shuffle=True)
        == shuffled
        == _fit(_batches(count=60), shuffle=False)
    )


def test_outside_of_fit_batches_can_be_indexed_and_iterated_again():
    batches = _batches()
    labels = [y.tolist() for _, y in batches]
    assert batches[2][1].tolist() == labels[2]
    assert [y.tolist() for _, y in batches] == labels == _fit(_batches())
    with pytest.raises(IndexError):
        batches[4]


def _images():
    return np.random.default_rng(0).random((40, 6, 6, 2), dtype="float32") + 0.5


@pytest.mark.parametrize("augment", ["crop_flip", "reflect_crop"])
def test_augmented_images_are_crops_of_the_padded_image(augment):
    x = _images()
    arguments = {"batch_size": 40, "augment": augment, "seed": 3}
    images, labels = datasets.EpochBatches(x, np.arange(40), **arguments)[0]
    again, _ = datasets.EpochBatches(x, np.arange(40), **arguments)[0]
    other, _ = datasets.EpochBatches(x, np.arange(40), epoch=lambda: 1, **arguments)[0]
    np.testing.assert_array_equal(images, again)
    assert images.shape == x.shape and not np.array_equal(images, other)
    mode = "constant" if augment == "crop_flip" else "reflect"
    padded = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)), mode=mode)
    mirrored = 0
    for image, label in zip(images, labels, strict=True):
        crops = [padded[label, i : i + 6, j : j + 6] for i in range(9) for j in range(9)]
        plain = any(np.array_equal(image, crop) for crop in crops)
        flipped = any(np.array_equal(image, crop[:, ::-1]) for crop in crops)
        assert plain or flipped
        mirrored += not plain
    assert (mirrored > 5) == (augment == "crop_flip")


def test_batches_refuse_arguments_that_do_not_fit():
    for keywords, message in [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 11, "drop_remainder": True}, "drop_remainder"),
        ({"augment": "mixup"}, "crop_flip"),
        ({"augment": "crop_flip"}, "height, width"),
    ]:
        with pytest.raises(ValueError, match=message):
            _batches(**keywords)
    with pytest.raises(ValueError, match="same length"):
        datasets.EpochBatches(np.zeros(3), np.zeros(2), batch_size=1)


@pytest.mark.parametrize("network", made_up.NETWORKS)
def test_made_up_data_is_always_the_same_and_fits_its_network(network):
    name = made_up.NETWORKS[network]
    data, again = (datasets.load(name, validation_fraction=0.1, limit=20) for _ in range(2))
    np.testing.assert_array_equal(data.x_train, again.x_train)
    assert [len(x) for x in (data.x_train, data.x_validation, data.x_test)] == [20, 20, 20]
    assert data.x_train.dtype == "float32"
    more = {"num_classes": data.num_classes} if data.num_classes else {}
    model = models.get(network, input_shape=data.input_shape, **more)
    outputs = model(data.x_test[:2])
    if data.num_classes:
        assert (data.task, data.bounds) == ("classes", (0.0, 1.0))
        assert data.x_train.min() >= 0 and data.x_train.max() <= 1
        assert set(np.unique(data.y_train)) <= set(range(data.num_classes))
        assert outputs.shape == (2, data.num_classes)
    else:
        assert (data.task, data.bounds) == ("numbers", (None, None))
        np.testing.assert_array_equal(data.y_test, data.x_test)
        assert outputs.shape == data.y_test[:2].shape
    with pytest.raises(ValueError, match="made_up_people"):
        made_up.make("made_up_dogs")
