# SPDX-License-Identifier: Apache-2.0
"""C files on emulated boards, under attack, and from the command line."""

import shutil
import subprocess

import keras
import numpy as np
import pytest
from keras import layers

from tests import c_code
from tests.exporting import prune
from tfmot_atmc import attacks, datasets, evaluate_robustness, export, models
from tfmot_atmc.cli import main
from tfmot_atmc.export.c import CModel, export_c, measure_footprint, write_images


@pytest.fixture(scope="module")
def trained():
    data = datasets.load("digits")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(12, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data.x_train, data.y_train, epochs=4, verbose=0)
    return model, data


@pytest.fixture
def written(trained, tmp_path):
    model, data = trained
    export_c(model, tmp_path / "model.c", representative=data.x_train[:200])
    return tmp_path / "model.c"


def run_on(board, folder, *options):
    """Builds the example's project for a board and runs it; returns what it prints, by label."""
    for file in c_code.BOARD.iterdir():
        if file.is_file():
            shutil.copy(file, folder / file.name)
    command = ["make", "run", f"BOARD={board}", "DEFINES=-DPRINT_OUTPUTS", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    found = {}
    for line in done.stdout.splitlines():
        label, _, value = line.rpartition(" ")
        if value.lstrip("-").isdigit():
            found.setdefault(label, []).append(int(value))
    return found


@c_code.needs_compiler
@c_code.needs_qemu
@pytest.mark.parametrize("board", ["microbit", "mps2-an385", "mps2-an386"])
def test_emulated_boards_compute_what_this_machine_computes(trained, written, board):
    _, data = trained
    model = CModel(written)
    write_images(written.with_name("images.h"), model, data.x_test[:4], data.y_test[:4])
    found = run_on(board, written.parent, "OPTIMIZE=-Os")
    codes = model.codes(model.quantize(data.x_test[:4]))
    assert found["output"] == codes.reshape(-1).tolist()
    assert found["label"] == codes.argmax(1).tolist()
    assert 0 < found["ticks of 40 instructions"][0] * 40 < 500_000
    cpu = "cortex-m4" if board == "mps2-an386" else "cortex-m0plus"
    footprint = measure_footprint(written, cpu, "-Os")
    # The caller's own frame and the saved registers of the call are not in the compiler's figure.
    assert footprint.stack <= found["bytes of stack"][0] + 16
    assert found["bytes of stack"][0] <= footprint.stack + 64


@c_code.needs_compiler
@c_code.needs_qemu
def test_softmax_and_sums_on_a_core_without_long_products(tmp_path):
    inputs = keras.Input((7, 7, 2))
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(inputs)
    x = layers.Add()([x, layers.Conv2D(6, 1)(x)])
    x = layers.GlobalAveragePooling2D()(layers.AveragePooling2D(2, padding="same")(x))
    model = prune(keras.Model(inputs, layers.Dense(5, activation="softmax")(x)), 0.4)
    examples = np.random.default_rng(0).normal(size=(6, 7, 7, 2)).astype(np.float32)
    export_c(model, tmp_path / "model.c", representative=examples, min_agreement=0.0)
    written = CModel(tmp_path / "model.c")
    write_images(tmp_path / "images.h", written, examples, np.zeros(6))
    found = run_on("mps2-an385", tmp_path)
    assert found["output"] == written.codes(written.quantize(examples)).reshape(-1).tolist()


@c_code.needs_compiler
def test_c_files_are_attacked_as_they_run(trained, written):
    model, data = trained
    x, y = data.x_test[:60], data.y_test[:60]
    transfer = attacks.PGD(epsilon=0.2, steps=5)
    square = attacks.Square(epsilon=0.2, queries=40)
    through = evaluate_robustness(str(written), (x, y), attacks=[transfer], source=model)
    itself = evaluate_robustness(str(written), (x, y), attacks=[square])
    runner = CModel(written)
    clean = np.mean(runner(x).argmax(1) == y)
    assert through.clean_accuracy == itself.clean_accuracy == pytest.approx(clean)
    assert through.attacks[0].accuracy < clean and itself.attacks[0].accuracy < clean
    assert through.target == itself.target == "model.c"
    with pytest.raises(ValueError, match="must name a .tflite or a C file"):
        evaluate_robustness("model.cc", (x, y), attacks=[square])


@c_code.needs_compiler
def test_command_line_writes_evaluates_and_refuses(trained, capsys, tmp_path):
    model, _ = trained
    model.save(tmp_path / "net.keras")
    command = ["export", str(tmp_path / "net.keras"), "--format=c"]
    assert main([*command, "--dataset=digits", "--test_images=3"]) == 0
    printed = capsys.readouterr().out
    assert "labels agree" in printed and "images.h: 3 test images" in printed
    assert (tmp_path / "net.c").exists() and (tmp_path / "net.h").exists()
    assert "images[IMAGES][64]" in (tmp_path / "images.h").read_text()
    attack = ["--attack=square", "--epsilon=0.1", "--limit=30"]
    assert main(["evaluate", str(tmp_path / "net.c"), "--dataset=digits", *attack]) == 0
    assert "on the file itself" in capsys.readouterr().out
    assert main([*command, "--values=float32", f"--out={tmp_path}/f.c"]) == 0
    assert "float" in (tmp_path / "f.h").read_text()
    for arguments, message in (
        ([*command], "needs --dataset"),
        ([*command, "--values=int8"], "full_int8 or float32"),
        ([*command, "--dataset=digits", "--board"], "needs --out=FOLDER/model.c"),
        ([*command, "--dataset=digits", "--batch_size=2"], "not for --format=c"),
        ([*command, "--dataset=digits", "--max_flash=1KB"], "bytes of flash"),
        (["export", str(tmp_path / "net.keras"), "--max_ram=1KB"], "not for --format=tflite"),
    ):
        capsys.readouterr()
        assert main(arguments) != 0
        assert message in capsys.readouterr().err.replace("\n", " ")


@c_code.needs_compiler
@c_code.needs_qemu
def test_command_line_writes_a_project_that_runs(trained, capsys, tmp_path):
    trained[0].save(tmp_path / "net.keras")
    folder = tmp_path / "board"
    command = ["export", str(tmp_path / "net.keras"), "--format=c", "--dataset=digits", "--board"]
    assert main([*command, f"--out={folder}/model.c"]) == 0
    assert f"make -C {folder} run" in capsys.readouterr().out.replace("\n", "")
    done = subprocess.run(["make", "-C", folder, "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of 10" in done.stdout.splitlines()
    assert int(done.stdout.split("right ")[1].split()[0]) >= 8


@c_code.needs_compiler
def test_reference_models_are_exported_by_name(tmp_path, capsys):
    name = models.references.names()[-1]
    out = f"--out={tmp_path / 'reference.c'}"
    assert main(["export", name, "--format=c", "--values=float32", out]) == 0
    assert "multiplications" in capsys.readouterr().out


def test_images_need_labels(written):
    with pytest.raises(ValueError, match="a label for each of 2 examples"):
        write_images(written.with_name("i.h"), CModel(written), np.zeros((2, 8, 8, 1)), [1])
    assert export.CModel is CModel
