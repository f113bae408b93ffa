# SPDX-License-Identifier: Apache-2.0
"""The examples run as a user would run them."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _run(name, folder, *arguments):
    outcome = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


def test_the_demonstration_writes_file_table_and_picture(tmp_path):
    text = _run("digits_demo.py", tmp_path, "--out=demo", "--epochs=1", "--limit=64")
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert list(results) == ["dense", "dense, robust", "ATMC", ".tflite"]
    assert results["ATMC"]["clean"] == results[".tflite"]["clean"]
    assert results["ATMC"]["nonzeros"] <= round(0.05 * 38160)
    assert results[".tflite"]["bytes"] == (tmp_path / "demo" / "model.tflite").stat().st_size
    assert f"{results['.tflite']['bytes']:,}" in text
    assert (tmp_path / "demo" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_of_ones_own_is_compressed(tmp_path):
    text = _run("compress_your_model.py", tmp_path, "--epochs=1", "--limit=64")
    assert "factorized" in text and "worst case" in text
    assert (tmp_path / "small.tflite").is_file()


def test_a_custom_layer_has_only_what_it_names_compressed(tmp_path):
    text = _run("custom_layer.py", tmp_path)
    assert "low_rank" in text and "up: 576 of 576 nonzero" in text


def test_a_network_of_keras_applications_is_compressed(tmp_path):
    text = _run("keras_applications.py", tmp_path)
    assert "DepthwiseConv2D" in text and "left alone" in text
    assert "The plain network has its layers back: predictions" in text
