# SPDX-License-Identifier: Apache-2.0
"""From own data without classes to the report: answers, numbers, features, one sigmoid."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfmot_atmc as atmc
from tfmot_atmc import datasets
from tfmot_atmc.cli import main
from tfmot_atmc.datasets.checked import in_units
from tfmot_atmc.recipes import aims, measures, pipeline, sources
from tfmot_atmc.recipes.settings import CompressionSettings
from tfmot_atmc.utils.locks import locked

QUICK = ["--method=al0", "--ratio=0.5", "--epochs=1", "--steps=1", "--batch_size=16"]


@pytest.fixture(autouse=True)
def short_attacks(monkeypatch):
    def few(epsilon, bounds=(0.0, 1.0)):
        steps = {"PGD-16": 2, "PGD-40": 3}
        return {
            name: atmc.attacks.PGD(epsilon=epsilon, bounds=bounds, steps=n)
            for name, n in steps.items()
        }

    monkeypatch.setattr(pipeline, "standard_attacks", few)


def _network(inputs, outputs, activation=None):
    keras.utils.set_random_seed(0)
    norm = keras.layers.Normalization()
    norm.adapt(50 * np.random.default_rng(0).random((60, inputs)).astype("float32"))
    layers = [keras.Input((inputs,)), norm, keras.layers.Dense(24, "relu")]
    return keras.Sequential([*layers, keras.layers.Dense(outputs, activation)])


def _saved(tmp_path, kind):
    """Writes data of a kind and a model for it; returns their paths."""
    x = 50 * np.random.default_rng(0).random((60, 6)).astype("float32")
    y = {
        "numbers": x[:, :2] / 50,
        "answers": (x[:, :3] > 25).astype("int64"),
        "sigmoid": (x[:, 0] > 25).astype("int64"),
        "itself": None,
    }[kind]
    arrays = {"x": x, "feature_names": list("abcdef")} | ({} if y is None else {"y": y})
    np.savez(tmp_path / "data.npz", **arrays)
    outputs = {"numbers": 2, "answers": 3, "sigmoid": 1, "itself": 6}[kind]
    _network(6, outputs, "sigmoid" if kind == "sigmoid" else None).save(tmp_path / "m.keras")
    return tmp_path / "data.npz", tmp_path / "m.keras"


@pytest.mark.parametrize("kind", ["numbers", "answers", "sigmoid", "itself"])
def test_one_command_trains_exports_and_measures_what_has_no_classes(kind, tmp_path, capsys):
    data, model = _saved(tmp_path, kind)
    out = tmp_path / "out"
    flags = [f"--data={data}", f"--model={model}", f"--out={out}", "--bounds=0,50", "--epsilon=5"]
    assert main(["compress", *flags, *QUICK]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    measure = {"answers": "all answers right", "sigmoid": "accuracy"}.get(kind, "mean square error")
    assert results["measure"] == measure and measure.capitalize() in said
    found = results["evaluation"]["tflite"]
    loaded = datasets.load_npz(data, bounds=(0, 50))
    outputs = atmc.export.TFLiteModel(out / "model.tflite")(loaded.x_test)[0]
    expected = {
        "numbers": lambda: np.mean((outputs - loaded.y_test) ** 2),
        "itself": lambda: np.mean((outputs - loaded.x_test) ** 2),
        "answers": lambda: np.mean(((outputs > 0) == loaded.y_test).all(axis=1)),
        "sigmoid": lambda: np.mean((outputs[:, 0] > 0.5) == loaded.y_test),
    }[kind]()
    assert found["clean"] == pytest.approx(expected, rel=1e-4)
    worse = found["PGD-40"] >= found["clean"] if kind in ("numbers", "itself") else True
    assert worse and found["report"]["n"] == len(loaded.y_test)
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    twin = keras.saving.load_model(out / "final.keras")
    norm = next(x for x in twin.layers if isinstance(x, keras.layers.Normalization))
    np.testing.assert_allclose(norm.mean.numpy().ravel(), loaded.x_train.mean(0), atol=5)
    flags = [f"--data={data}", "--bounds=0,50", "--epsilon=5", "--attack=fgsm"]
    asked = ["evaluate", str(out / "final.keras"), *flags, "--nochecks"]
    assert main(asked) == 0, capsys.readouterr().err


def test_losses_follow_the_data_and_whether_a_model_ends_in_probabilities(tmp_path):
    for kind, name in (("numbers", "mean_squared_error"), ("answers", "binary_crossentropy")):
        data = datasets.load_npz(_saved(tmp_path, kind)[0])
        loss = aims.loss_for(_network(6, data.outputs), data)
        assert loss.name == name and getattr(loss, "from_logits", True)
    assert aims.loss_for(_network(6, 3, "sigmoid"), data).from_logits is False
    data = datasets.load_npz(_saved(tmp_path, "sigmoid")[0])
    softmax = aims.loss_for(_network(6, 2, "softmax"), data)
    assert softmax.name == "sparse_categorical_crossentropy" and not softmax.from_logits
    assert aims.builder_arguments("lenet", data)["num_classes"] == 2
    itself = datasets.load_npz(_saved(tmp_path, "itself")[0])
    assert aims.builder_arguments("autoencoder", itself) == {"input_shape": (6,)}
    with pytest.raises(ValueError, match="restores its inputs.*give another model"):
        aims.builder_arguments("autoencoder", data)
    with pytest.raises(ValueError, match="5 outputs.*holds 2 numbers"):
        numbers = datasets.load_npz(_saved(tmp_path, "numbers")[0])
        aims.check_outputs("m.keras", _network(6, 5), numbers)
    with pytest.raises(ValueError, match=r"takes inputs of shape \(4,\).*have shape \(6,\)"):
        aims.check_outputs("m.keras", _network(4, 2), numbers)


def test_the_loss_under_attack_is_that_of_the_attacked_inputs():
    """On a linear model the strongest change is known: each input moves by epsilon."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[1.0], [2.0]], "float32")])
    x = np.array([[0.5, 0.5], [0.2, 0.4]], "float32")
    y = x @ np.array([[1.0], [2.0]], "float32") - 1.0  # the output is one too large
    parts = (x, y, x, y, x, y)
    data = datasets.Dataset(*parts, 0, "linear")
    chosen = {"PGD": atmc.attacks.PGD(epsilon=0.1, steps=5, step_size=0.1)}
    found = measures.measured(model, data, chosen)
    assert found["clean"] == pytest.approx(1.0, rel=1e-5)
    assert found["PGD"] == pytest.approx((1.0 + 0.1 + 0.2) ** 2, rel=1e-4)
    assert not found["report"]["warnings"]
    with pytest.raises(ValueError, match="looks at classes"):
        measures.measured(model, data, {"fab": atmc.attacks.FAB(epsilon=0.1)})


def test_radii_and_bounds_are_given_by_feature_and_by_column(tmp_path):
    data = datasets.load_npz(_saved(tmp_path, "sigmoid")[0], bounds={"b": (0, 60)})
    assert data.feature_names == tuple("abcdef")
    low, high = data.bounds
    assert low.tolist() == [-np.inf, 0, *[-np.inf] * 4] and high[1] == 60
    radius = sources.radius_of("b=1/2,d=3", data)
    np.testing.assert_array_equal(radius, [0, 0.5, 0, 3, 0, 0])
    attack = atmc.attacks.PGD(epsilon=radius, bounds=data.bounds, steps=3)
    moved = np.abs(attack(_network(6, 2), data.x_test, data.y_test).numpy() - data.x_test)
    assert (moved.max(axis=0) <= radius + 1e-5).all() and moved[:, 3].max() > 1
    np.testing.assert_array_equal(sources.radius_of("1,2,3,4,5,6", data), np.arange(1, 7))
    assert sources.default_epsilon(0.1, "a=0:10,b=0:50") == "a=1.0,b=5.0"
    assert CompressionSettings(data="x", bounds="0:2,0:4").resolved().epsilon.count(",") == 1
    assert CompressionSettings(epsilon="26/255").resolved().epsilon == 26 / 255
    for text, says in (("g=1", "no column 'g'"), ("1,2", "2 values.*6 features"), ("x", "such as")):
        with pytest.raises(ValueError, match=says):
            sources.radius_of(text, data)
    part = {"train": (np.array([[1.0, 70.0]], "float32"), np.zeros(1))}
    with pytest.raises(ValueError, match="Column 'b' of x holds values from 70 to 70.*0 to 60"):
        in_units(part, {"b": (0, 60)}, ("a", "b"))
    with pytest.raises(ValueError, match="different units"):
        sources.check_units(np.array([0.1, 700.0]), (np.zeros(2), np.array([1.0, 60.0])))


def test_a_second_run_into_the_same_folder_is_refused_until_the_first_is_gone(tmp_path, capsys):
    data, model = _saved(tmp_path, "sigmoid")
    out = tmp_path / "out"
    out.mkdir()
    holder = "import sys, time\nfrom tfmot_atmc.utils.locks import locked\n"
    holder += "with locked(sys.argv[1], 'run'):\n    print('held', flush=True)\n    time.sleep(60)"
    lock = str(out / ".run.lock")
    other = subprocess.Popen(
        [sys.executable, "-c", holder, lock], stdout=subprocess.PIPE, env=dict(os.environ)
    )
    try:
        assert other.stdout.readline() == b"held\n"
        flags = [f"--data={data}", f"--model={model}", f"--out={out}", "--epsilon=5", *QUICK]
        assert main(["compress", *flags, "--bounds=0,50"]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"Another run runs in {out} (process {other.pid})" in said
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with locked(lock, "run"):  # the system released it
        pass
