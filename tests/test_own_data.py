# SPDX-License-Identifier: Apache-2.0
"""Own data: folders of images, arrays and saved datasets, up to a file for a camera."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tfmot_atmc import datasets
from tfmot_atmc.cli import main
from tfmot_atmc.datasets.checked import in_units
from tfmot_atmc.export import TFLiteModel, read_notes
from tfmot_atmc.recipes.settings import CompressionSettings
from tfmot_atmc.recipes.sources import check_units, parse_bounds, parse_size


def _pictures(folder, counts, size=(12, 12), grey=False):
    """Writes PNGs: bright at the top, or at the bottom, with noise."""
    rng = np.random.default_rng(0)
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = rng.integers(0, 90, (*size, 1 if grey else 3))
            half = size[0] // 2
            image[half * number : half * (number + 1)] += 120
            data = tf.io.encode_png(image.astype("uint8")).numpy()
            (folder / name / f"{i:03}.png").write_bytes(data)
    return folder


def test_a_folder_gives_classes_by_name_and_images_in_the_bounds(tmp_path):
    data = datasets.load_own(_pictures(tmp_path / "a", {"top": 20, "bottom": 30}))
    assert data.class_names == ("bottom", "top") and data.num_classes == 2
    assert [len(x) for x in (data.x_train, data.x_validation, data.x_test)] == [36, 4, 10]
    assert data.input_shape == (12, 12, 3) and data.task == "classes"
    assert data.x_train.dtype == "float32" and 0 <= data.x_train.min() < data.x_train.max() <= 1
    np.testing.assert_array_equal(np.bincount(data.y_test), [6, 4])
    bytes_ = datasets.load_folder(tmp_path / "a", bounds=(0, 255))
    np.testing.assert_allclose(bytes_.x_train, 255 * data.x_train, rtol=1e-5)
    grey = datasets.load_folder(_pictures(tmp_path / "g", {"a": 6, "b": 6}, grey=True))
    assert grey.input_shape == (12, 12, 1)


def test_splits_in_a_folder_are_taken_and_images_brought_to_a_size(tmp_path):
    _pictures(tmp_path / "train", {"a": 6, "b": 6}, size=(10, 14))
    _pictures(tmp_path / "val", {"a": 2, "b": 2}, size=(12, 12))
    _pictures(tmp_path / "test", {"a": 3, "b": 3}, size=(9, 9))
    data = datasets.load_folder(tmp_path, image_size=(8, 8))
    assert [len(x) for x in (data.x_train, data.x_validation, data.x_test)] == [12, 4, 6]
    assert data.input_shape == (8, 8, 3)


def test_arrays_hold_classes_answers_or_numbers(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((40, 5)).astype("float32")
    path = tmp_path / "a.npz"
    np.savez(path, x=x, y=np.arange(40) % 3, class_names=["a", "b", "c"])
    data = datasets.load_npz(path)
    assert (data.task, data.num_classes, data.class_names) == ("classes", 3, ("a", "b", "c"))
    assert data.bounds == (0.0, 1.0)
    np.savez(path, x=3 * x, y=(x > 0.5).astype("float32"))
    answers = datasets.load_npz(path, bounds=(0, 3))
    assert (answers.task, answers.num_classes, answers.bounds) == ("answers", 5, (0, 3))
    np.savez(path, x_train=4 * x, x_test=4 * x[:7])
    numbers = datasets.load_own(path)
    assert (numbers.task, numbers.num_classes, numbers.bounds) == ("numbers", 0, (None, None))
    np.testing.assert_array_equal(numbers.y_test, numbers.x_test)
    images = rng.integers(0, 256, (40, 4, 4, 1)).astype("uint8")
    np.savez(path, x=images, y=np.arange(40) % 2)
    assert 0.9 < datasets.load_npz(path).x_train.max() <= 1.0
    assert datasets.load_npz(path, bounds=(0, 255)).x_train.max() > 200
    vector = np.full(5, 0.0), np.linspace(1, 5, 5)
    np.savez(path, x=x, y=np.arange(40) % 2)
    assert datasets.load_npz(path, bounds=vector).bounds is vector


def test_saved_datasets_are_read_batched_or_not(tmp_path):
    x, y = np.random.default_rng(0).random((20, 4, 4, 1)), np.arange(20) % 2
    plain = tf.data.Dataset.from_tensor_slices((x, y))
    for name, saved in (("a", plain), ("b", plain.batch(6)), ("c", plain.batch(5, True))):
        saved.save(str(tmp_path / name))
        data = datasets.load_own(tmp_path / name)
        assert data.input_shape == (4, 4, 1) and data.num_classes == 2, name
        assert len(data.x_train) + len(data.x_validation) + len(data.x_test) == 20


def _bad(tmp_path, name):
    """Writes data that cannot be used; returns its path."""
    where, path = tmp_path / name, tmp_path / f"{name}.npz"
    x, y = np.random.default_rng(0).random((10, 3)).astype("float32"), np.arange(10) % 2
    if name == "nothing":
        return where
    if name == "empty":
        where.mkdir()
        (where / "readme.txt").write_text("no image")
    elif name == "one":
        _pictures(where, {"a": 3})
    elif name == "sizes":
        _pictures(where, {"a": 3})
        _pictures(where, {"b": 3}, size=(10, 10))
    elif name == "broken":
        _pictures(where, {"a": 3, "b": 3})
        (where / "a" / "x.png").write_bytes(b"no png")
    elif name == "text":
        where.write_text("x")
    else:
        arrays = {
            "no_x": {"inputs": x},
            "no_y": {"x_train": x, "y_train": y, "x_test": x},
            "beyond": {"x": x, "y": y + 1, "class_names": ["a", "b"]},
            "negative": {"x": x, "y": y - 1},
            "lengths": {"x": x, "y": y[:5]},
            "alone": {"x": x, "y": 0 * y},
            "nan": {"x": x * np.nan, "y": y},
        }
        np.savez(path, **arrays[name])
        return path
    return where


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "no data at.*one folder a class"),
        ("empty", "holds no images.*one folder for each class"),
        ("one", "one class only, 'a'.*make a folder for the other"),
        ("sizes", "several sizes: 12x12.*10x10.*image_size"),
        ("broken", "x.png' is not an image"),
        ("text", "neither a folder nor an .npz"),
        ("no_x", "no array named x.*it has inputs.*numpy.savez"),
        ("no_y", "x_test but no y_test"),
        ("beyond", "labels from 0 to 2.*2 classes"),
        ("negative", "labels from -1 to 0"),
        ("lengths", "10 inputs and 5 targets"),
        ("alone", "one class only"),
        ("nan", "not finite"),
    ],
)
def test_bad_data_is_told_in_one_line_with_what_to_do(tmp_path, name, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        datasets.load_own(_bad(tmp_path, name))
    assert "\n" not in str(caught.value)


def test_units_bounds_and_sizes_are_checked():
    assert parse_bounds("0,255") == (0.0, 255.0) and parse_bounds(None) is None
    assert parse_size("96x64") == (96, 64) and parse_size("8,9") == (8, 9)
    for text in ("255", "1,0", "a,b", "0,1,2"):
        with pytest.raises(ValueError, match="such as 0,255"):
            parse_bounds(text)
    with pytest.raises(ValueError, match="such as 96,96"):
        parse_size("96")
    check_units(8 / 255, (0, 1))
    check_units(8.0, (0, 255))
    check_units(3.0, (None, None))
    for epsilon, bounds in ((8 / 255, (0, 255)), (8.0, (0, 1))):
        with pytest.raises(ValueError, match="different units.*8/255 of the range"):
            check_units(epsilon, bounds)
    outside = np.array([[0.0, 9.0]] * 4, "float32")
    with pytest.raises(ValueError, match="outside the bounds 0 to 1"):
        in_units({"train": (outside, np.arange(4))}, (0, 1))
    assert CompressionSettings(data="photos", bounds="0,255").resolved().epsilon == 4.0
    assert CompressionSettings(data="my/photos").resolved().out == "atmc_out/photos"


def test_one_command_leads_from_pictures_to_a_checked_file_for_a_camera(tmp_path, capsys):
    photos = _pictures(tmp_path / "photos", {"top": 30, "bottom": 30})
    out = tmp_path / "out"
    code = main(
        [
            *("compress", f"--data={photos}", f"--out={out}", "--model=small_cnn", "--ratio=0.3"),
            *("--input_type=uint8", "--dense_epochs=4", "--epochs=2", "--bits=8", "--steps=1"),
        ]
    )
    said = capsys.readouterr()
    assert code == 0, said.err
    notes = read_notes(out / "model.tflite")
    assert notes["class_names"] == ["bottom", "top"]
    assert notes["inputs"][0]["type"] == notes["outputs"][0]["type"] == "uint8"
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["data"] == str(photos)
    assert results["evaluation"]["tflite"]["clean"] > 0.8
    picture = tf.io.decode_png((photos / "top" / "000.png").read_bytes()).numpy()[None]
    answer = TFLiteModel(out / "model.tflite")(picture)[0]
    assert notes["class_names"][int(answer.argmax())] == "top"


def test_data_that_is_not_for_the_model_or_the_command_is_refused(tmp_path, capsys):
    photos = _pictures(tmp_path / "photos", {"a": 6, "b": 6})
    tests = [
        ([f"--data={photos}", "--epsilon=8"], "different units"),
        (["--bounds=0,255"], "is for `data` of your own"),
        ([f"--data={photos}", "--image_size=8"], "such as 96,96"),
        ([f"--data={photos}", "--model=lenet"], "at least 16x16"),
    ]
    for flags, says in tests:
        assert main(["compress", f"--out={tmp_path / 'o'}", *flags]) == 2
        assert says in capsys.readouterr().err.replace("\n", " ")
