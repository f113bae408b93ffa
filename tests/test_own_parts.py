# SPDX-License-Identifier: Apache-2.0
"""A method and an attack of a user's own, one file each, wherever the project's own may be used."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfmot_atmc import attacks, cli, compress, datasets, methods, strip_compression
from tfmot_atmc.recipes import pipeline, run_stages
from tfmot_atmc.recipes.settings import CompressionSettings
from tfmot_atmc.study import load_description
from tfmot_atmc.study.jobs import expand
from tfmot_atmc.utils.own_files import import_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
METHOD, ATTACK = (ROOT / "tests" / "own" / f"{n}.py" for n in ("scored_subnetwork", "worst_of"))
OWN = [f"--import={METHOD}", f"--import={ATTACK}"]


@pytest.fixture(scope="module", autouse=True)
def known():
    """Imports both files, as `--import` does, and finds one attack of the usual tests enough."""
    few = {"PGD-16": 1, "PGD-40": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pipeline,
            "standard_attacks",
            lambda epsilon, bounds=(0, 1): {
                k: attacks.PGD(epsilon=epsilon, steps=n) for k, n in few.items()
            },
        )
        yield import_file(METHOD), import_file(ATTACK)


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits", validation_fraction=0.1, limit=96)


def network():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, name="head"),
        ]
    )


def test_a_new_method_trains_scores_and_then_the_weights_they_chose(data, tmp_path):
    method = methods.get("scoredsubnetwork", ratio=0.25)
    scores, weights = method.stages(2)
    start = network()
    dense = {layer.name: layer.kernel.numpy() for layer in start.layers if layer.weights}
    common = {"attack": attacks.FGSM(epsilon=0.1), "out_dir": tmp_path, "verbose": 0}
    scored = run_stages(start, [scores], data, **common)
    for kernel in scored.kernels:
        fixed, score = kernel.factors
        np.testing.assert_array_equal(fixed.variable, dense[kernel.layer.name])
        first = np.abs(kernel.kernel.initial_values(dense[kernel.layer.name])["S"])
        assert (np.abs(score.variable) != first).any()  # these were trained
    # A quarter of 36 and of 1,440 weights: the largest scores chose 9 and 360 of them.
    assert [np.count_nonzero(k.compose()) for k in scored.kernels] == [9, 360]
    assert scored.compression_report().nonzeros == 369
    chosen = {k.layer.name: k.compose().numpy() for k in scored.kernels}
    with pytest.warns(UserWarning, match=r"conv/kernel \(W, S\).* go on from the kernels"):
        tuned = run_stages(start, [scores, weights], data, **common)
    for kernel in tuned.kernels:
        value, before = kernel.compose().numpy(), chosen[kernel.layer.name]
        assert (value[before == 0] == 0).all() and (value != before).any()
    plain = strip_compression(tuned)
    assert sum(np.count_nonzero(layer.kernel) for layer in plain.layers if layer.weights) <= 369


def test_a_step_on_scores_compiles_with_xla(data):
    small = compress(network(), "scoredsubnetwork", attack="worstof", epsilon=0.1, tries=1)
    small.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True), jit_compile=True)
    before = [f.variable.numpy() for f in small.kernels[0].factors]
    small.train_on_batch(data.x_train[:16], data.y_train[:16])
    after = [f.variable.numpy() for f in small.kernels[0].factors]
    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1] != after[1]).any()


def test_a_model_trained_with_an_own_attack_and_method_is_saved_and_loaded(data, tmp_path):
    small = compress(network(), "scoredsubnetwork", ratio=0.5, attack="worstof", epsilon=0.1)
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert type(again.attack).__name__ == "WorstOf" and again.attack.tries == 3
    assert type(again.method).__name__ == "ScoredSubnetwork" and again.method.ratio == 0.5
    x = data.x_test[:8]
    np.testing.assert_array_equal(again.predict(x, verbose=0), small.predict(x, verbose=0))


def test_the_help_and_the_settings_know_own_parts(capsys):
    assert cli.main(["compress", *OWN, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--import" in printed and "scoredsubnetwork" in printed and "worstof" in printed
    settings = CompressionSettings(method="scoredsubnetwork", attack="worstof").resolved()
    assert [stage.name for stage in settings.stages()] == ["dense", "scores", "weights"]
    assert cli.main(["compress", *OWN, "--method=scoredsubnetwork", "--bits=4"]) == 2
    assert "`bits` is for methods that have `bits`" in capsys.readouterr().err
    assert cli.main(["compress", *OWN, "--method=scoredsubnet"]) == 2
    assert "Did you mean 'scoredsubnetwork'" in capsys.readouterr().err
    assert cli.main(["compress", "--import=absent.py"]) == 2
    assert "no file 'absent.py'" in capsys.readouterr().err


def test_the_command_line_trains_them_and_evaluates_in_another_process(tmp_path, capsys):
    network().save(tmp_path / "start.keras")
    out = tmp_path / "out"
    command = ["compress", *OWN, "--method=scoredsubnetwork", "--attack=worstof", "--ratio=0.25"]
    command += [f"--model={tmp_path / 'start.keras'}", "--epochs=1", "--limit=64", f"--out={out}"]
    assert cli.main(command) == 0
    assert "go on from the kernels" in " ".join(capsys.readouterr().err.split())
    results = json.loads((out / "results.json").read_text())
    assert results["compression"]["nonzeros"] <= 369
    assert results["training_attack"]["class_name"] == "WorstOf"
    assert f"--import={METHOD}" in results["command"]
    assert (out / "model.tflite").stat().st_size > 0
    evaluate = [sys.executable, "-m", "tfmot_atmc", "evaluate", str(out / "scores.keras"), *OWN]
    evaluate += ["--attack=worstof", "--limit=16", "--nochecks", f"--out={out / 'report.json'}"]
    outcome = subprocess.run(evaluate, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "WorstOf" in (out / "report.json").read_text()


STUDY = f"""
import: [{METHOD.name}, {ATTACK.name}]
methods: [{{method: scoredsubnetwork, arguments: {{scores: true}}}}]
ratios: 0.25
bits: [32, 4]
training: {{worst: {{attack: worstof, tries: 1}}}}
test: {{Worst: {{attack: worstof}}}}
seeds: 0
dense_epochs: 1
epochs: 1
limit: 48
"""


def test_a_study_trains_them_in_its_workers(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in (METHOD, ATTACK):  # a file says them from where it lies
        (folder / file.name).symlink_to(file)
    path = folder / "mine.yaml"
    path.write_text(STUDY.replace(", arguments: {scores: true}", ""))
    description = load_description(path)
    assert load_description(path).from_dict(description.to_dict()) == description
    jobs = expand(description)
    trained = [job.stages[-1].name for job in jobs.values() if job.stages]
    assert trained == ["dense", "scores", "weights"]  # not once more with bits
    assert cli.main(["study", str(path), "--jobs=1", f"--out={tmp_path / 'out'}"]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    own = [row for row in rows if row["method"] == "scoredsubnetwork"]
    assert {row["attack"] for row in own} == {"clean", "Worst"}
    assert all(row["epochs"] == 2 and row["nonzeros"] <= 0.25 * 38160 for row in own)


def test_files_of_one_name_are_told_apart(tmp_path):
    other = tmp_path / "worst_of.py"
    other.write_text("x = 1\n")
    assert import_file(ATTACK) is import_file(str(ATTACK))
    with pytest.raises(ValueError, match="'worst_of' .* is taken by .*worst_of.py"):
        import_file(other)
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ValueError, match="'json'"):
        import_file(tmp_path / "json.py")
    with pytest.raises(ValueError, match="such as my_method.py"):
        import_file(tmp_path / "my-method.py")
    broken = tmp_path / "broken_file.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        import_file(broken)
    assert "broken_file" not in sys.modules
