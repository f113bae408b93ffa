# SPDX-License-Identifier: Apache-2.0
"""`atmc compress --max_bytes`: planned before training, held to by the file on disk."""

import dataclasses
import json
import pathlib

import keras
import pytest

import tfmot_atmc as atmc
from tfmot_atmc import cli
from tfmot_atmc.recipes import networks, pipeline, run
from tfmot_atmc.recipes.settings import CompressionSettings

TINY = ["--method=al0", "--limit=64", "--steps=1", "--epsilon=26/255", "--epochs=1"]


@pytest.fixture(scope="module", autouse=True)
def short_attacks():
    """Attacks of the usual names with few steps, which are traced sooner."""

    def few(epsilon, bounds=(0, 1)):
        return {name: atmc.attacks.PGD(epsilon=epsilon, steps=1) for name in ("PGD-16", "PGD-40")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "standard_attacks", few)
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A plain model on disk."""
    path = tmp_path_factory.mktemp("start") / "start.keras"
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, activation="relu", name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu", name="wide"),
            keras.layers.Dense(10, name="head"),
        ]
    )
    model.save(path)
    return str(path)


@pytest.fixture
def refuse_training(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a stage was trained")

    monkeypatch.setattr(run, "_run_stage", refuse)


@pytest.fixture(scope="module")
def done(start, tmp_path_factory):
    """The arguments and the folder of one finished `atmc compress --max_bytes`."""
    out = tmp_path_factory.mktemp("done") / "out"
    arguments = ["compress", f"--model={start}", "--max_bytes=4KB", *TINY, f"--out={out}"]
    assert cli.main(arguments) == 0
    return arguments, out


def test_the_file_on_disk_is_within_the_budget_that_the_results_name(done, start):
    _, out = done
    results = json.loads((out / "results.json").read_text())
    plan = atmc.plan_budget(keras.saving.load_model(start), "4KB")
    budget = results["budget"]
    assert {name: budget[name] for name in dataclasses.asdict(plan)} == dataclasses.asdict(plan)
    assert budget["max_bytes"] == 4096 and plan.predicted_bytes <= 4096
    assert budget["bytes"] == (out / "model.tflite").stat().st_size <= 4096
    assert results["bytes"]["tflite"] == budget["bytes"]
    nonzeros, dense = (results["compression"][key] for key in ("nonzeros", "dense_parameters"))
    assert 0 < nonzeros <= round(plan.ratio * dense)
    assert results["settings"]["max_bytes"] == "4KB" and results["settings"]["ratio"] is None
    assert CompressionSettings(**results["settings"]).resolved().max_bytes == "4KB"
    assert results["evaluation"]["tflite"]["report"]["n"] == 64


def test_the_same_command_again_trains_nothing_and_finds_the_same(done, refuse_training, capsys):
    arguments, out = done
    before = json.loads((out / "results.json").read_text())
    assert cli.main(arguments) == 0
    said = " ".join(capsys.readouterr().out.split())
    plan = before["budget"]
    assert f"at most 4,096 bytes: a ratio of {plan['ratio']:.4f}" in said
    assert f"{plan['predicted_bytes']:,}" in said and f"{plan['smallest_bytes']:,}" in said
    assert f"Budget: {plan['bytes']:,} of 4,096 bytes" in said
    after = json.loads((out / "results.json").read_text())
    for key in ("budget", "evaluation", "bytes", "seconds"):
        assert after[key] == before[key]


def test_another_budget_into_the_same_folder_is_refused(done, refuse_training, capsys):
    arguments, out = done
    before = (out / "model.tflite").read_bytes()
    assert cli.main([*arguments, "--max_bytes=3KB"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert (out / "model.tflite").read_bytes() == before


def test_channels_go_where_the_trained_model_is_too_large(
    done, start, tmp_path, monkeypatch, capsys
):
    attacked = []

    def found_before(settings, data, targets, *_):
        attacked.extend(targets)
        return json.loads((done[1] / "results.json").read_text())["evaluation"]

    def too_much(model, max_bytes):
        return dataclasses.replace(atmc.plan_budget(model, max_bytes), ratio=0.5)

    monkeypatch.setattr(networks, "plan_budget", too_much)
    monkeypatch.setattr(pipeline, "_evaluate", found_before)
    arguments = ["compress", f"--model={start}", "--max_bytes=3500", *TINY, f"--out={tmp_path}"]
    assert cli.main(arguments) == 0
    budget = json.loads((tmp_path / "results.json").read_text())["budget"]
    assert (tmp_path / "model.tflite").stat().st_size == budget["bytes"] <= 3500
    assert set(budget["channels_removed"]) == set(budget["channels_kept"]) != set()
    assert min(budget["channels_removed"].values()) >= 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"{sum(budget['channels_removed'].values())} channels removed" in said
    twin = keras.saving.load_model(tmp_path / "final.keras")
    _, (_, before, _), (_, path, after) = attacked
    assert pathlib.Path(path) == tmp_path / "model.tflite"
    for name, kept in budget["channels_kept"].items():
        assert twin.get_layer(name).kernel.shape[-1] == kept
        assert after.get_layer(name).kernel.shape[-1] == kept
        assert before.get_layer(name).kernel.shape[-1] >= kept + budget["channels_removed"][name]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--max_bytes=900"], "the smallest possible file of"),
        (["--max_bytes=4KB", "--ratio=0.1"], "Give `ratio` or `max_bytes`, not both"),
        (["--max_bytes=4KB", "--method=da"], "for methods that have `ratio`"),
        (["--max_bytes=many"], "24KB"),
    ],
)
def test_what_cannot_be_is_refused_before_any_training(
    flags, said, start, refuse_training, capsys, tmp_path
):
    out = tmp_path / "out"
    arguments = ["compress", f"--model={start}", *TINY, "--dense_epochs=1", *flags]
    assert cli.main([*arguments, f"--out={out}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("atmc: error: ") and error.count("\n") == 1 and said in error
    assert not out.exists()


def test_a_ratio_is_given_or_follows_from_the_size():
    sized = CompressionSettings(max_bytes=4096).resolved()
    assert sized.ratio is None and sized.resolved() == sized
    with pytest.raises(ValueError, match="plan_budget"):
        sized.stages()
    planned = dataclasses.replace(sized, ratio=0.02)
    assert [stage.name for stage in planned.stages()][-1] == "atmc4"
    assert CompressionSettings().resolved().ratio == 0.05


def test_max_macs_is_planned_before_training_and_held_by_what_is_left(start, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["compress", f"--model={start}", "--max_macs=12K", *TINY, f"--out={out}"]
    assert cli.main(arguments) == 0
    found = json.loads((out / "results.json").read_text())
    dense = 9 * 8 * 36 + 288 * 32 + 320
    assert found["compression"]["dense_macs"] == dense
    assert 10_000 < found["compression"]["macs"] <= 12_000
    said = " ".join(capsys.readouterr().out.split())
    assert f"at most 12,000 of {dense:,} multiply-accumulates" in said
    assert f"{found['compression']['macs']:,} of {dense:,}" in said
