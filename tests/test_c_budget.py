# SPDX-License-Identifier: Apache-2.0
"""Ratios that fit in flash and RAM, before training, and runs that hold them or refuse."""

import json

import numpy as np
import pytest
from keras import Input, Sequential, layers

from tests import c_code
from tfmot_atmc import export
from tfmot_atmc.compression.flash import plan_flash
from tfmot_atmc.export.c import sizes
from tfmot_atmc.export.c.prediction import FootprintPredictor
from tfmot_atmc.recipes.pipeline import run_compression
from tfmot_atmc.recipes.settings import CompressionSettings

IMAGES = np.random.default_rng(0).random((20, 8, 8, 1)).astype(np.float32)


def network():
    return Sequential(
        [
            Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(60, activation="relu"),
            layers.Dense(10),
        ]
    )


@c_code.needs_arm
def test_plans_take_the_largest_ratio_that_fits_and_refuse_with_figures():
    model = network()
    predict = FootprintPredictor(model, IMAGES, "cortex-m4")
    sizes = [predict(ratio)[-1].flash for ratio in (0.0, 0.01, 0.1, 1.0)]
    assert sizes == sorted(sizes) and sizes[0] < 4_000 and sizes[-1] > 17_000
    plan = plan_flash(model, IMAGES, max_flash="6KB")
    assert 0.05 < plan.ratio < 0.3 and 5_000 < plan.flash <= 6_144
    assert min(f.flash for f in predict(1.3 * plan.ratio)) > 0.97 * 6_144
    assert plan_flash(model, IMAGES, max_flash="1MB").ratio == 1.0
    with pytest.raises(export.TooLargeError, match=rf"needs {sizes[0]:,} bytes of flash"):
        plan_flash(model, IMAGES, max_flash=sizes[0] - 1)
    with pytest.raises(export.TooLargeError, match="any of flash and 100 of RAM"):
        plan_flash(model, IMAGES, max_ram=100)


@c_code.needs_arm
def test_plans_count_what_reads_a_picture_in_bytes():
    plain = FootprintPredictor(network(), IMAGES, "cortex-m4")(0.1)
    camera = FootprintPredictor(network(), IMAGES, "cortex-m4", 1.0)(0.1)
    for without, with_bytes in zip(plain, camera, strict=True):
        assert with_bytes.static >= without.static
        assert 20 < with_bytes.flash - without.flash < 1_000


def test_without_a_cross_compiler_code_is_allowed_for(monkeypatch):
    monkeypatch.setattr(sizes.shutil, "which", lambda name: None)
    plan = plan_flash(network(), IMAGES, max_flash="12KB")
    assert plan.level == "(estimated)" and plan.flash <= 12 * 1024
    with pytest.raises(export.TooLargeError, match="estimated|bytes of flash"):
        plan_flash(network(), IMAGES, max_flash="8KB")


@c_code.needs_compiler
@c_code.needs_arm
def test_runs_write_c_code_within_the_limits_and_attack_it(tmp_path):
    settings = CompressionSettings(
        dense_epochs=1, epochs=1, limit=120, max_flash="6KB", max_ram="3KB", out=str(tmp_path),
        input_type="uint8",
    )  # fmt: skip
    lines = []
    results = run_compression(settings, log=lines.append)
    planned = next(line for line in lines if line.startswith("C code for cortex-m4"))
    assert "predicted to need" in planned and "of RAM at -O" in planned
    assert (tmp_path / "model.c").exists() and (tmp_path / "model.h").exists()
    fitting = [f for f in results["c"]["footprints"] if f["flash"] <= 6_144]
    assert fitting and all(f["static"] + f["stack"] <= 3_072 for f in fitting)
    assert results["evaluation"]["c"]["PGD-16"] <= results["evaluation"]["c"]["clean"] + 1e-9
    assert "const uint8_t *input" in (tmp_path / "model.h").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["c"]["compiled"]


def test_limits_that_are_none_or_cannot_be_held_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="size must be a positive"):
        CompressionSettings(max_flash="-1").resolved()
    with pytest.raises(ValueError, match="max_flash.*is for methods that have"):
        CompressionSettings(method="da", max_flash="6KB").resolved()
    assert CompressionSettings(max_flash="6KB").resolved().ratio is None
    assert CompressionSettings(max_ram="6KB").resolved().ratio is not None
    settings = CompressionSettings(dense_epochs=1, epochs=1, limit=50, max_ram=300,
                                   out=str(tmp_path / "out"))  # fmt: skip
    with pytest.raises(export.TooLargeError, match="allowed are any of flash and 300 of RAM"):
        run_compression(settings)
    assert not (tmp_path / "out").exists()
