# SPDX-License-Identifier: Apache-2.0
"""Budgets in multiply-accumulates and energy: planned, held, reported."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tfmot_atmc as atmc
from tests.residual import compiled, data, residual
from tfmot_atmc import methods
from tfmot_atmc.kernels import Site
from tfmot_atmc.methods import EnergyCost, MacCost
from tfmot_atmc.recipes import CompressionSettings
from tfmot_atmc.slimming import layer_costs

DENSE = 108 * 64 + 36 * 64 + 16 * 64 + 144 * 16 + 20  # of `residual`, by hand


def test_a_cost_is_worked_out_from_the_site():
    site = Site("a/kernel", "a", "Conv2D", (3, 3, 2, 4), positions=64, calls=2)
    assert methods.get("al0", ratio=0.5).cost_of(site, "W") == 1.0
    assert methods.get("al0", ratio=0.5, ratio_of="macs").cost_of(site, "W") == 128.0
    assert methods.get("atmc", ratio=0.5, ratio_of="energy").cost_of(site, "U") == 640 + 128 * 14.6
    table = EnergyCost(memory=0, buffer=0, operation=2)
    assert methods.get("ap", ratio=0.5, ratio_of=table).cost_of(site, "W") == 256.0
    with pytest.raises(ValueError, match=r"positions of 'a/kernel' is not known"):
        MacCost().of(Site("a/kernel", "a", "Conv2D", (3, 3, 2, 4)))
    with pytest.raises(ValueError, match="Energies must be at least 0"):
        EnergyCost(memory=-1)
    with pytest.raises(ValueError, match="A budget for each layer counts weights"):
        methods.get("al0", ratio=0.5, ratio_of="macs", layer_exponent=0.5)
    with pytest.raises(ValueError, match="weights"):
        methods.get("al0", ratio=0.5, ratio_of="joules")


def test_the_usual_currency_does_not_change_how_studies_know_a_method():
    assert "ratio_of" not in methods.get("atmc", ratio=0.1).get_config()
    assert methods.get("atmc", ratio=0.1, ratio_of="macs").get_config()["ratio_of"] == "macs"
    table = methods.get("al0", ratio=0.1, ratio_of=EnergyCost(memory=1.0))
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(table))
    assert again.ratio_of.memory == 1.0 and json.dumps(table.get_config())
    stages = methods.get("atmc", ratio=0.1, ratio_of="macs").stages(8, "paper")
    assert {stage.method.ratio_of for stage in stages} == {"macs"}


def test_counters_agree_and_a_plan_counts_what_is_left_alone():
    model = residual()
    assert sum(cost.macs for cost in layer_costs(model)) == DENSE
    assert atmc.models.count_macs(model) == DENSE
    plan = atmc.plan_macs(model, 5000)
    assert (plan.dense_macs, plan.untouched_macs) == (DENSE, 0)
    assert plan.ratio * DENSE <= 5000 < plan.ratio * DENSE + 1
    part = atmc.plan_macs(model, "8K", layers=["stem", "point"])
    assert part.untouched_macs == 36 * 64 + 144 * 16 + 20
    assert part.ratio == pytest.approx((8000 - part.untouched_macs) / (124 * 64))
    assert atmc.plan_macs(model, "1M").ratio == 1.0
    with pytest.raises(ValueError, match="not compressed take 11,540"):
        atmc.plan_macs(model, 11000, layers=["point"])
    with pytest.raises(ValueError, match="must be positive"):
        atmc.plan_macs(model, "many")
    open_size = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3)])
    with pytest.raises(ValueError, match="not fixed"):
        atmc.plan_macs(open_size, 100)


@pytest.mark.parametrize("method", ["al0", "atmc", "ap"])
def test_max_macs_is_held_by_what_is_stripped_and_the_report_counts_it(method):
    x, y = data((8, 8, 3), classes=5)
    given = {} if method == "ap" else {"schedule": "constant"}
    small = atmc.compress(residual(), method, max_macs=4000, **given)
    compiled(small).fit(x, y, batch_size=16, verbose=0)
    report = small.compression_report()
    assert report.dense_macs == DENSE and 4000 - 64 < report.macs <= 4000
    assert report.to_dict()["macs"] == report.macs and f"{report.macs:,} with nonzeros" in str(
        report
    )
    assert small.method.ratio_of == "macs"
    if method != "atmc":  # of one kernel, factors and kernel are the same
        plain = atmc.strip_compression(small)
        uses = {cost.name: cost.macs // np.prod(cost.kernel_shape) for cost in layer_costs(plain)}
        left = sum(
            np.count_nonzero(plain.get_layer(n).kernel) * n_uses for n, n_uses in uses.items()
        )
        assert left == report.macs


def test_what_cannot_be_held_is_refused_with_what_can():
    with pytest.raises(ValueError, match=r"no budget of multiply-accumulates.*al0.*atmc"):
        atmc.compress(residual(), "hydra", max_macs=4000)
    with pytest.raises(ValueError, match="`max_macs` finds the ratio by itself"):
        atmc.compress(residual(), "al0", max_macs=4000, ratio=0.5)
    with pytest.raises(ValueError, match="`max_bytes` finds the ratio by itself"):
        atmc.compress(residual(), "al0", max_bytes="16KB", ratio_of="macs")


def test_settings_take_a_currency_or_a_limit_on_operations():
    found = CompressionSettings(ratio_of="macs", ratio=0.2).resolved().stages()
    assert {stage.method.ratio_of for stage in found[1:]} == {"macs"}
    limited = CompressionSettings(max_macs="1M").resolved()
    assert limited.ratio is None
    with pytest.raises(ValueError, match="plan_macs"):
        limited.stages()
    with pytest.raises(ValueError, match="Leave out `ratio`"):
        CompressionSettings(max_macs="1M", ratio=0.1).resolved()
    with pytest.raises(ValueError, match="`ratio_of` is for methods"):
        CompressionSettings(method="hydra", ratio_of="macs").resolved()
