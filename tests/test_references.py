# SPDX-License-Identifier: Apache-2.0
"""The reference models are what their cards say, and load by name."""

import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import tfmot_atmc
from tfmot_atmc import references
from tfmot_atmc.export import TFLiteModel, inspect_tflite
from tfmot_atmc.models.references import loading

ROOT = pathlib.Path(tfmot_atmc.__file__).resolve().parent.parent
FILES = ROOT / "tfmot_atmc" / "models" / "files"
NAMES = references.names()
every = pytest.mark.parametrize("name", NAMES)
LARGEST_PACKAGE_DATA = 1_000_000


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """A copy of all files that the library reads instead."""
    folder = tmp_path / "files"
    shutil.copytree(FILES, folder)
    monkeypatch.setattr(loading, "_FILES", folder)
    return folder


def test_there_is_a_model_for_each_ratio_measured_so_far_larger_ratios_first():
    assert {f"lenet-mnist-{ratio}" for ratio in (0.05, 0.01, 0.005, 0.002, 0.001)} <= set(NAMES)
    ratios = [references.card(name)["network"]["ratio"] for name in NAMES]
    assert ratios == sorted(ratios, reverse=True)


@every
def test_the_keras_model_and_the_tflite_file_compute_the_same_ten_logits(name):
    images = np.random.default_rng(0).random((16, 28, 28, 1), np.float32)
    images[8:] = np.where(images[8:] > 0.8, 1.0, 0.0)  # sparse, as digits are
    model = references.load(name)
    expected = np.asarray(model(images))
    (outputs,) = TFLiteModel(references.tflite_path(name))(images)
    assert expected.shape == outputs.shape == (16, 10)
    assert np.abs(outputs - expected).max() <= 1e-5 * np.abs(expected).max()
    assert (expected < 0).any(), "logits, not probabilities"
    assert not np.allclose(expected.sum(axis=-1), 1.0)


@every
def test_the_kernels_are_those_of_the_card(name):
    card, model = references.card(name), references.load(name)
    kernels = [w for w in model.weights if len(w.shape) > 1]
    assert [k["name"] for k in card["network"]["kernels"]] == [w.path for w in kernels]
    for told, kernel in zip(card["network"]["kernels"], kernels, strict=True):
        values = np.asarray(kernel)
        assert told["nonzeros"] == np.count_nonzero(values)
        assert told["values"] == len(np.unique(values[values != 0])) <= 254
    budget = card["network"]["ratio"] * card["network"]["dense_kernel_weights"]
    assert card["network"]["trained_nonzeros"] <= budget


@every
def test_bytes_and_checksums_of_the_card_are_those_on_disk(name):
    for kind, path in (
        ("keras", references.keras_path(name)),
        ("tflite", references.tflite_path(name)),
    ):
        content, told = path.read_bytes(), references.card(name)["files"][kind]
        assert told["file"] == path.name == f"{name}.{kind}"
        assert told["bytes"] == len(content) <= 100_000
        assert told["sha256"] == hashlib.sha256(content).hexdigest()
    assert references.tflite_path(name).stat().st_size < references.keras_path(name).stat().st_size


@every
def test_all_kernels_worth_it_are_stored_as_int8(name):
    tensors = inspect_tflite(references.tflite_path(name))
    large = [tensor for tensor in tensors if np.prod(tensor.shape) > 1000]
    assert large
    assert {tensor.dtype for tensor in large} == {"int8"}


@every
def test_accuracies_of_the_card_lie_in_their_intervals_and_fall_with_the_attack(name):
    card = references.card(name)
    accuracy = card["accuracy"]
    assert {"clean", "PGD-16", "PGD-40"} <= set(accuracy)
    for found in accuracy.values():
        low, high = found["interval"]
        assert 0.0 < low < found["accuracy"] < high < 1.0
        assert found["n"] >= 1000
    assert accuracy["clean"]["n"] == 10_000
    assert accuracy["clean"]["same_labels_as_keras"] == 10_000
    smallest = card["network"]["ratio"] < 0.002  # below 400 nonzeros, clean accuracy goes as well
    assert accuracy["clean"]["accuracy"] > (0.85 if smallest else 0.9)
    assert accuracy["clean"]["accuracy"] > accuracy["PGD-16"]["accuracy"]
    assert accuracy["PGD-16"]["accuracy"] > accuracy["PGD-40"]["accuracy"]
    assert card["epsilon_255"] == pytest.approx(255 * card["epsilon"])


@every
def test_a_card_says_where_the_model_came_from_and_what_it_is_not_for(name):
    card = references.card(name)
    assert f"--ratios {card['network']['ratio']:g}" in card["rebuild"]
    script = card["rebuild"].split()[1]
    assert card["rebuild"].startswith("python ") and (ROOT / script).is_file()
    assert [stage["name"] for stage in card["recipe"]["stages"]][0] == "dense"
    assert card["recipe"]["stages"][-1]["name"] == card["selection"]["stage"]
    assert all(stage["epochs"] >= 1 for stage in card["recipe"]["stages"])
    assert card["licence"] == "Apache-2.0"
    assert card["limits"] and card["intended_use"] and card["versions"]["keras"]
    rounded = [row for row in card["selection"]["candidates"] if row["values"] != "as trained"]
    (chosen,) = (row for row in rounded if row["chosen"])
    assert chosen["PGD-40"] == max(row["PGD-40"] for row in rounded)
    assert chosen["stage"] == card["selection"]["stage"]
    assert chosen["tflite_bytes"] == card["files"]["tflite"]["bytes"]


@every
def test_the_written_card_is_the_card_rendered(name):
    text = (FILES / f"{name}.md").read_text()
    assert text == references.render_card(references.card(name))
    assert text.startswith(f"# {name}\n")
    assert "(ratio" in text and "76/255" in text


def test_the_document_has_the_table_of_the_cards():
    table = references.render_table(references.card(name) for name in NAMES)
    assert table.count("\n") == len(NAMES) + 1
    assert table in (ROOT / "docs/references.md").read_text()
    assert "](docs/references.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("kind", ["keras", "tflite"])
def test_a_damaged_file_is_refused(copies, kind):
    path = copies / f"lenet-mnist-0.01.{kind}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    read = references.load if kind == "keras" else references.tflite_path
    with pytest.raises(ValueError, match="damaged.*SHA-256"):
        read("lenet-mnist-0.01")
    path.unlink()
    with pytest.raises(ValueError, match="missing"):
        read("lenet-mnist-0.01")
    assert references.load("lenet-mnist-0.005").output_shape == (None, 10)


@pytest.mark.parametrize("name", ["lenet-mnist-0.1", "resnet", "../x", "", None])
def test_an_unknown_name_is_refused_with_those_there_are(name):
    for read in (references.load, references.card, references.tflite_path, references.keras_path):
        with pytest.raises(ValueError, match="no reference model .* Did you mean 'lenet-mnist-0"):
            read(name)


def test_the_package_data_is_small_and_names_all_files():
    files = sorted(path.name for path in FILES.iterdir())
    endings = ("json", "keras", "md", "tflite")
    assert files == sorted(f"{name}.{ending}" for name in NAMES for ending in endings)
    assert sum(path.stat().st_size for path in FILES.iterdir()) < LARGEST_PACKAGE_DATA
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not in a checkout")
    table = (ROOT / "pyproject.toml").read_text().partition("[tool.setuptools.package-data]\n")[2]
    patterns = re.findall(r'"([^"]+)"', table.splitlines()[0])
    found = {path for pattern in patterns for path in (ROOT / "tfmot_atmc").glob(pattern)}
    assert set(FILES.iterdir()) <= found


def test_keras_loads_the_files_without_this_library():
    """In a fresh interpreter, where no class of ours is registered."""
    paths = [str(references.keras_path(name)) for name in NAMES]
    code = (
        "import json, sys, keras\n"
        "for path in json.loads(sys.argv[1]):\n"
        "    print(keras.saving.load_model(path, compile=False).count_params())\n"
        "print('tfmot_atmc' in sys.modules)"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code, json.dumps(paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    *counts, ours = outcome.stdout.split()
    assert [int(count) for count in counts] == [
        references.load(name).count_params() for name in NAMES
    ]
    assert ours == "False"
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert b"tfmot_atmc" not in archive.read("config.json")


def test_the_card_s_clean_accuracy_is_found_again(mnist):
    for name in NAMES:
        (outputs,) = TFLiteModel(references.tflite_path(name))(mnist.x_test[:1000])
        found = np.mean(outputs.argmax(-1) == mnist.y_test[:1000])
        # The first thousand are a sample of the ten thousand: four standard errors.
        accuracy = references.card(name)["accuracy"]["clean"]["accuracy"]
        assert abs(found - accuracy) < 4 * np.sqrt(accuracy * (1 - accuracy) / 1000)
