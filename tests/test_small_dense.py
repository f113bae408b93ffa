# SPDX-License-Identifier: Apache-2.0
"""The rival of compressed networks: narrower, dense, and as large as the budget allows."""

import json

import pytest

import tfmot_atmc as atmc
from tfmot_atmc import methods, models
from tfmot_atmc.compression.widths import plan_width
from tfmot_atmc.recipes.settings import CompressionSettings
from tfmot_atmc.study import jobs, work
from tfmot_atmc.study.description import Description


def test_widest_is_the_last_that_fits():
    count = models.count_kernel_weights
    found = models.widest(models.compact_cnn, lambda m: count(m) <= 3000, seed=3)
    tries = {n: count(models.compact_cnn(width=n / 64)) for n in (29, 30, 31, 32)}
    assert count(found) == max(weights for weights in tries.values() if weights <= 3000)
    again = models.compact_cnn(width=30 / 64, seed=3)
    assert count(again) == tries[30]
    with pytest.raises(ValueError, match=r"Not even the narrowest network of 'compact_cnn' fits"):
        models.widest(models.compact_cnn, lambda m: count(m) < 1)
    with pytest.raises(ValueError, match="takes no `width`"):
        models.widest(models.lenet, lambda m: True)


def test_the_planned_width_gives_a_file_just_within_the_bytes(tmp_path):
    network, plan = plan_width(models.compact_cnn, "4KB", seed=0)
    report = atmc.export_tflite(
        network, tmp_path / "small.tflite", values="int8", names=False, measure_latency=False
    )
    assert plan.max_bytes == 4096 and plan.ratio == 1.0
    assert 0.9 * 4096 < report.bytes <= 4096
    assert abs(report.bytes - plan.predicted_bytes) < 64
    assert plan.smallest_bytes < plan.predicted_bytes
    with pytest.raises(ValueError, match="Not even the narrowest"):
        plan_width(models.compact_cnn, 1000)


def test_it_is_a_method_that_trains_densely_and_builds_its_own_network():
    method = methods.get("small_dense", ratio=0.25)
    assert method.narrows and method.starts_dense and not methods.AL0(ratio=0.5).narrows
    assert method.stages(8) == []
    (stage,) = method.stages(8, phases="all")
    rival = methods.AL0(ratio=0.5).stages(8, phases="all")
    assert stage.epochs == sum(other.epochs * other.attack_factor for other in rival)
    settings = CompressionSettings(dataset="mnist", method="small_dense", max_bytes="8KB")
    assert settings.resolved().model == "compact_cnn"
    assert CompressionSettings(dataset="mnist").resolved().model == "mnist_cnn"
    with pytest.raises(ValueError, match=r"`ratio` must lie in \(0, 1\]"):
        methods.get("small_dense", ratio=0)


def test_a_study_trains_it_at_equal_weights_and_leaves_the_jobs_of_others_alone(tmp_path):
    common = {"models": "mnist_cnn", "ratios": 0.02, "bits": 32, "seeds": 0, "limit": 64}
    common |= {
        "dense_epochs": 1,
        "epochs": 1,
        "test_examples": 8,
        "test": {"FGSM": {"attack": "fgsm"}},
    }
    alone = jobs.expand(Description(methods=("al0",), **common))
    both = jobs.expand(Description(methods=("al0", "small_dense"), **common))
    assert {name: both[name].digest for name in alone} == {n: j.digest for n, j in alone.items()}
    added = [job for name, job in both.items() if name not in alone]
    trained = [job for job in added if job.stages]
    assert [job.stages[-1].name for job in trained] == ["dense", "small_dense"]
    assert all(job.configuration["narrow"] == 0.02 for job in trained)
    for job in added:
        work.do(job, both, tmp_path)
    (measured,) = (job for job in added if not job.stages)
    result = json.loads((work.folder_of(tmp_path, measured) / "job.json").read_text())["result"]
    full = models.count_kernel_weights(models.mnist_cnn((8, 8, 1)))
    assert 0.01 * full < result["nonzeros"] <= 0.02 * full
