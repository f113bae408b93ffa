# SPDX-License-Identifier: Apache-2.0
"""Plans in milliseconds: from a table of operators, measured or given."""

import keras
import pytest
from keras import layers

import tfmot_atmc as atmc
from tests.residual import residual
from tfmot_atmc.compression import OperatorTable
from tfmot_atmc.compression.latency import OperatorTime
from tfmot_atmc.compression.operations import layers_with_sites
from tfmot_atmc.math import parse_milliseconds
from tfmot_atmc.slimming import layer_costs


def table_at(rate, overhead=0.0):
    """A device on which each multiply-accumulate takes the same time."""
    kinds = [
        ("Conv2D", (3, 3), (1, 1), 64),
        ("Conv2D", (1, 1), (1, 1), 64),
        ("Conv2D", (3, 3), (2, 2), 16),
        ("DepthwiseConv2D", (3, 3), (1, 1), 64),
        ("Dense", (), (), 1),
    ]
    times = [OperatorTime(*kind, macs, macs * rate) for kind in kinds for macs in (100, 20_000)]
    return OperatorTable("a clock", tuple(times), overhead)


def test_an_operator_is_interpolated_within_its_kind_and_in_proportion_beyond():
    times = [
        OperatorTime("Conv2D", (3, 3), (1, 1), 64, 1000, 1.0),
        OperatorTime("Conv2D", (3, 3), (1, 1), 64, 3000, 2.0),
        OperatorTime("Conv2D", (3, 3), (1, 1), 1024, 1000, 9.0),
    ]
    table = OperatorTable("made up", tuple(times))
    predict = lambda macs, positions=70: table.predict(  # noqa: E731
        "Conv2D", (3, 3), (1, 1), positions, macs
    )
    assert [predict(macs) for macs in (0, 500, 1000, 2000, 6000)] == [0.0, 0.5, 1.0, 1.5, 4.0]
    assert predict(500, 900) == 4.5
    with pytest.raises(ValueError, match="no Dense"):
        table.predict("Dense", (), (), 1, 10)


def test_a_table_survives_its_file_and_another_file_is_refused(tmp_path):
    table = table_at(1e-4, 0.25)
    table.save(tmp_path / "table.json")
    assert OperatorTable.load(tmp_path / "table.json") == table
    (tmp_path / "other.json").write_text('{"device": "x"}')
    with pytest.raises(ValueError, match="holds no table"):
        OperatorTable.load(tmp_path / "other.json")


def test_a_plan_says_what_it_expects_and_holds_to_it(tmp_path):
    model = residual()
    macs = sum(cost.macs for cost in layer_costs(model))
    table = table_at(1e-3, overhead=1.0)
    plan = atmc.plan_latency(model, f"{1 + macs * 5e-4} ms", table=table)
    assert plan.dense_ms == pytest.approx(1 + macs * 1e-3)
    assert plan.predicted_ms <= plan.max_ms and plan.device == "a clock"
    # Time is in proportion to operations here, so both tell of the same channels.
    assert plan.ratio == pytest.approx((plan.predicted_ms - 1) / (macs * 1e-3))
    assert 0.2 < plan.ratio <= 0.5
    table.save(tmp_path / "table.json")
    small = atmc.compress(
        model, "al0", ratio=1.0, max_latency=plan.max_ms, latency_table=tmp_path / "table.json"
    )
    assert small.method.channels == plan.ratio
    trained = atmc.compress(model, "in_train_pruning", max_latency=plan.max_ms, latency_table=table)
    assert trained.method.ratio == plan.ratio
    assert atmc.plan_latency(model, "1s", table=table).ratio == 1.0
    with pytest.raises(ValueError, match="one channel a layer"):
        atmc.plan_latency(model, "1.001ms", table=table)
    with pytest.raises(ValueError, match="drops no channels"):
        atmc.compress(model, "hydra", ratio=0.5, max_latency="2ms", latency_table=table)
    with pytest.raises(ValueError, match="not both"):
        atmc.compress(model, "in_train_pruning", ratio=0.5, max_latency="2ms", latency_table=table)


def test_operators_are_measured_each_with_fewer_channels():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, strides=2, activation="relu", name="first"),
            layers.DepthwiseConv2D(3, name="depth"),
            layers.Flatten(),
            layers.Dense(4, name="head"),
        ]
    )
    table = atmc.measure_operators(model, shares=(1.0, 0.5), rounds=1)
    found = {(t.kind, t.kernel, t.positions): [] for t in table.times}
    for time in table.times:
        found[time.kind, time.kernel, time.positions].append(time.macs)
    assert found == {
        ("Conv2D", (3, 3), 9): [27 * 8 * 9, 27 * 4 * 9],
        ("DepthwiseConv2D", (3, 3), 1): [9 * 8, 9 * 4],
        ("Dense", (), 1): [32, 16],
    }
    assert table.overhead_ms > 0 and all(time.ms >= 0 for time in table.times)
    assert [layer.name for layer, _ in layers_with_sites(model)] == ["first", "depth", "head"]


def test_without_a_table_the_dense_network_is_measured_too():
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8, name="wide"), layers.Dense(2)])
    plan = atmc.plan_latency(model, "10s")
    assert plan.ratio == 1.0 and plan.predicted_ms == plan.dense_ms > 0
    assert "one thread" in plan.device


def test_times_are_read_in_any_unit():
    assert [parse_milliseconds(t) for t in ("2ms", "2 MS", 2, "2000us", "0.002s")] == [2.0] * 5
    for wrong in ("soon", -1, 0, True, "2 minutes"):
        with pytest.raises(ValueError, match="A latency must be"):
            parse_milliseconds(wrong)
