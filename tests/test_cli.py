# SPDX-License-Identifier: Apache-2.0
"""The command line: what it writes, that it goes on, and how it says no."""

import json

import keras
import pytest

import tfmot_atmc as atmc
from tfmot_atmc import cli
from tfmot_atmc.cli.numbers import NumberParser
from tfmot_atmc.recipes import pipeline, run
from tfmot_atmc.recipes.defaults import defaults
from tfmot_atmc.recipes.settings import CompressionSettings

TINY = ["--limit=64", "--steps=1", "--epsilon=26/255", "--epochs=1", "--ratio=0.2"]
STANDARD_ATTACKS = pipeline.standard_attacks


@pytest.fixture(scope="module", autouse=True)
def short_attacks():
    """Attacks of the usual names with few steps, which are traced sooner."""

    def few(epsilon, bounds=(0.0, 1.0)):
        steps = {"PGD-16": 2, "PGD-40": 3}
        return {name: atmc.attacks.PGD(epsilon=epsilon, steps=n) for name, n in steps.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "standard_attacks", few)
        yield


def test_results_are_given_for_the_papers_attack_and_a_longer_one():
    usual = STANDARD_ATTACKS(76 / 255)
    assert [(a.steps, a.rule) for a in usual.values()] == [(16, "kurakin"), (40, "atmc")]
    # min(76 + 4, 1.25 * 76) / 255 / 16 = 5 / 255, and 76 / 255 / 6.
    assert usual["PGD-16"].step_size == pytest.approx(5 / 255)
    assert usual["PGD-40"].step_size == pytest.approx(76 / 1530)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A plain model on disk."""
    path = tmp_path_factory.mktemp("start") / "start.keras"
    atmc.models.small_cnn(seed=3).save(path)
    return str(path)


@pytest.fixture(scope="module")
def done(start, tmp_path_factory):
    """The folder of one finished `atmc compress`."""
    out = tmp_path_factory.mktemp("done")
    arguments = ["compress", f"--model={start}", "--bits=32", *TINY, f"--out={out}"]
    assert cli.main(arguments) == 0
    return arguments, out


def test_compress_writes_models_figures_and_a_picture(done):
    _, out = done
    results = json.loads((out / "results.json").read_text())
    assert results["settings"]["epsilon"] == 26 / 255
    assert results["settings"]["bits"] == 32 and results["settings"]["seed"] == 0
    assert "--steps=1" in results["command"]
    assert set(results["evaluation"]) == {"dense", "compressed", "tflite"}
    for found in results["evaluation"].values():
        assert 0 <= found["PGD-40"] <= found["clean"] <= 1
        assert found["report"]["n"] == 64
    assert results["evaluation"]["tflite"]["report"]["source"] == "small_cnn"
    assert results["compression"]["nonzeros"] <= round(0.2 * 38160)
    assert (
        sum(results["compression"]["nonzeros_by_part"].values())
        == (results["compression"]["nonzeros"])
    )
    assert results["compression"]["paper_bits"] == 32 * results["compression"]["nonzeros"]
    assert results["bytes"]["tflite"] == (out / "model.tflite").stat().st_size
    assert results["bytes"]["dense_tflite"] == (out / "dense.tflite").stat().st_size
    assert results["bytes"]["dense_kernels"] == 4 * 38160
    assert list(results["seconds"]) == ["atmc32", "hardened", "polished"]
    assert results["versions"]["keras"] == keras.__version__
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob("*partial*"))


def test_the_same_command_again_trains_nothing_and_finds_the_same(done, monkeypatch):
    arguments, out = done
    before = json.loads((out / "results.json").read_text())

    def refuse(*_, **__):
        raise AssertionError("a finished stage was trained again")

    monkeypatch.setattr(run, "_run_stage", refuse)
    assert cli.main(arguments) == 0
    after = json.loads((out / "results.json").read_text())
    assert after["seconds"] == before["seconds"]
    assert after["evaluation"] == before["evaluation"]
    assert after["bytes"] == before["bytes"]


def test_another_command_into_the_same_folder_is_refused(done, capsys):
    arguments, _ = done
    assert cli.main([*arguments, "--ratio=0.3"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(done, capsys, monkeypatch, tmp_path):
    arguments, _ = done

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_run_stage", interrupt)
    assert cli.main([*arguments, f"--out={tmp_path}"]) == 130
    assert "same command again" in capsys.readouterr().err


def test_evaluate_measures_a_file_through_its_twin(done, capsys, tmp_path):
    _, out = done
    arguments = [f"--source={out}/final.keras", "--limit=20", "--epsilon=0.1", "--attack=fgsm"]
    report = tmp_path / "report.json"
    assert cli.main(["evaluate", f"{out}/model.tflite", *arguments, f"--out={report}"]) == 0
    assert "worst case" in capsys.readouterr().out
    found = json.loads(report.read_text())
    assert found["n"] == 20 and found["source"] == "small_cnn"
    assert [attack["attack"]["class_name"] for attack in found["attacks"]] == ["FGSM"]
    both = ["--attack=fgsm,square", f"--state={tmp_path}/state", "--nochecks", "--limit=10"]
    assert cli.main(["evaluate", f"{out}/model.tflite", arguments[0], *both]) == 0
    said = capsys.readouterr().out
    assert "FGSM (transfer from small_cnn)" in said and "Square (on the file itself)" in said


def test_evaluate_draws_curves_over_epsilon_and_over_steps(done, capsys, tmp_path):
    _, out = done
    common = ["evaluate", f"{out}/final.keras", "--limit=20", "--nochecks"]
    report, picture = tmp_path / "curve.json", tmp_path / "curve.png"
    files = [f"--out={report}", f"--picture={picture}"]
    values = "--values=0,16/255,1"
    assert cli.main([*common, "--attack=fgsm", "--curve=epsilon", values, *files]) == 0
    said = capsys.readouterr().out
    assert "small_cnn under FGSM: 20 examples" in said and "0.0627451" in said
    curve = json.loads(report.read_text())
    assert (curve["over"], curve["values"]) == ("epsilon", [0.0, 16 / 255, 1.0])
    assert curve["accuracies"][0] == curve["clean_accuracy"] >= curve["accuracies"][1]
    assert picture.read_bytes().startswith(b"\x89PNG")
    steps = ["--curve=steps", "--epsilon=0.1", "--values=2,1", f"--out={report}"]
    assert cli.main([*common, "--attack=mifgsm", *steps]) == 0
    curve = json.loads(report.read_text())
    assert (curve["attack"], curve["over"], curve["values"]) == ("MIFGSM", "steps", [1.0, 2.0])
    assert cli.main([*common, "--attack=wrm", "--curve=epsilon"]) == 2
    assert "WRM has no epsilon to vary" in capsys.readouterr().err
    assert cli.main([*common, "--attack=fgsm", "--curve=steps"]) == 2
    assert "FGSM takes no number of steps" in capsys.readouterr().err
    assert cli.main([*common, "--curve=steps", "--values=1.5"]) == 2
    assert "whole --values" in capsys.readouterr().err


def test_export_strips_a_compressed_model_first(done, capsys, tmp_path):
    _, out = done
    file = tmp_path / "exported.tflite"
    assert cli.main(["export", f"{out}/atmc32.keras", f"--out={file}", "--dataset=digits"]) == 0
    assert "largest difference from Keras" in capsys.readouterr().out
    assert file.stat().st_size == (out / "model.tflite").stat().st_size


def test_inspect_shows_compressed_plain_and_tflite_files(done, capsys):
    _, out = done
    assert cli.main(["inspect", f"{out}/atmc32.keras"]) == 0
    assert "conv1/kernel:V" in capsys.readouterr().out
    assert cli.main(["inspect", f"{out}/final.keras"]) == 0
    text = " ".join(capsys.readouterr().out.split())  # a long path wraps the line
    assert "plain Keras model" in text and "conv1/kernel" in text and "32,768" in text
    assert cli.main(["inspect", f"{out}/model.tflite"]) == 0
    assert f"{(out / 'model.tflite').stat().st_size:,} bytes" in capsys.readouterr().out


def test_commands_without_a_file_use_the_digits_network(done, capsys, monkeypatch, tmp_path):
    _, out = done
    monkeypatch.chdir(tmp_path)
    (tmp_path / "atmc_out").mkdir()
    (tmp_path / "atmc_out" / "digits").symlink_to(out)
    assert cli.main(["inspect"]) == 0
    assert "atmc_out/digits/final.keras" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", ["compress", "evaluate", "export", "inspect", "quantize", "study"]
)
def test_every_command_tells_its_flags(command, capsys):
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: atmc {command}") and "--debug" in text
    assert cli.main([]) == 0
    assert f"  {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["squeeze"], "Unknown command 'squeeze'"),
        (["compress", "--ratoi=0.1"], "ratoi"),
        (["compress", "--ratio=2"], "2"),
        (["compress", "--epsilon=8/0"], "8/255"),
        (["compress", "--model=absent.keras"], "neither a .keras file nor one of"),
        (["compress", "--dataset=digitz"], "digits"),
        (["compress", "--method=da", "--bits=8"], "`bits` is for methods that have `bits`: al0"),
        (["compress", "--method=alr", "--layer_exponent=0.1"], "have `layer_exponent`: al0, ap"),
        (["compress", "--layer_exponent=1.5"], "1.5"),
        (["compress", "--learning_rate=0"], "factor above 0"),
        (["compress", "--optimizer=lion"], "one of ('sgd', 'adam')"),
        (["compress", "--model=lenet"], "small_cnn"),
        (["compress", "surplus"], "flags only"),
        (["evaluate", "absent.keras"], "no file 'absent.keras'"),
        (["evaluate", "model.h5"], ".keras, .tflite or C file"),
        (["evaluate", "model.keras", "--steps=3"], "--attack"),
        (["evaluate", "model.keras", "--values=0.1"], "--curve epsilon or --curve steps"),
        (["evaluate", "model.keras", "--curve=width"], "epsilon|steps"),
        (["evaluate", "model.keras", "--curve=epsilon", "--attack=fgsm,pgd"], "one --attack"),
        (["evaluate", "model.keras", "--curve=epsilon", "--state=s"], "--state"),
        (["evaluate", "model.keras", "--curve=steps", "--attack=pgd", "--steps=3"], "--values"),
        (["export", "absent.keras"], "no file 'absent.keras'"),
        (["inspect", "absent.tflite"], "absent.tflite"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("atmc: error: ") and error.count("\n") == 1
    assert said in error
    assert list(tmp_path.iterdir()) == []


def test_gradient_attacks_on_a_file_need_its_twin(done, capsys):
    _, out = done
    assert cli.main(["evaluate", f"{out}/model.tflite", "--attack=pgd"]) == 2
    assert "`source=`" in capsys.readouterr().err


def test_debug_keeps_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        cli.main(["export", str(tmp_path / "absent.keras"), "--debug"])


def test_numbers_may_be_fractions():
    parse = NumberParser().parse
    assert parse("8/255") == 8 / 255 and parse("76.5/255") == 0.3
    assert parse("0.1") == 0.1 and parse("1e-3") == 0.001
    for wrong in ("", "a", "1/2/3", "1/0"):
        with pytest.raises(ValueError, match="8/255"):
            parse(wrong)


def test_settings_take_the_datasets_defaults_and_keep_what_is_given():
    mnist = CompressionSettings(dataset="mnist", epsilon=0.2).resolved()
    assert (mnist.model, mnist.epsilon, mnist.steps, mnist.dense_epochs) == (
        "mnist_cnn",
        0.2,
        3,
        16,
    )
    names = [stage.name for stage in mnist.stages()]
    assert names == ["dense", "atmc32", "hardened", "polished", "atmc8"]
    assert CompressionSettings(dataset="mnist", model="x.keras").resolved().dense_epochs == 0
    al0 = CompressionSettings(method="al0", batch_size=7).resolved()
    assert [(s.name, s.batch_size) for s in al0.stages()] == [("dense", 7), ("l0", 7)]
    assert [s.name for s in CompressionSettings(method="da").resolved().stages()] == ["dense"]
    assert defaults("unheard of").augment is None


@pytest.mark.parametrize(
    ("method", "kind"),
    [("atmc", "LayerwiseSparsity"), ("al0", "LayerwiseSparsity"), ("ap", "FixedSupport")],
)
def test_rates_and_budgets_of_layers_are_those_of_all_stages_after_the_start(method, kind):
    common = {"method": method, "ratio": 0.05, "bits": 4 if method == "atmc" else 32}
    start, *plain = CompressionSettings(**common).resolved().stages()
    settings = CompressionSettings(**common, layer_exponent=0.1, learning_rate=0.5).resolved()
    same_start, *layers = settings.stages()
    assert same_start.learning_rate == start.learning_rate
    assert [s.learning_rate for s in layers] == [s.learning_rate / 2 for s in plain]
    adam = CompressionSettings(**common, optimizer="adam", learning_rate=0.5).resolved().stages()
    assert adam[0].learning_rate == start.learning_rate  # by Adam anyway
    assert {s.optimizer for s in adam} == {"adam"}
    rates = [s.learning_rate / 100 for s in plain]
    assert [s.learning_rate for s in adam[1:]] == pytest.approx(rates)
    assert {s.method.layer_exponent for s in plain} == {None}
    for stage, before in zip(layers, plain, strict=True):
        config = before.method.get_config() | {"layer_exponent": 0.1}
        assert str(stage.method.get_config()) == str(config)
        kinds = [type(constraint).__name__ for constraint in stage.method.constraints()]
        assert kind in kinds and "GlobalSparsity" not in kinds
