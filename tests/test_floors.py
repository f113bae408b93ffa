# SPDX-License-Identifier: Apache-2.0
"""One budget of which each layer is assured a part: no layer is emptied by larger ones."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfmot_atmc as atmc
from tfmot_atmc.constraints import FlooredSparsity, GlobalSparsity, LayerwiseSparsity, sparsity
from tfmot_atmc.constraints.base import Factor
from tfmot_atmc.constraints.floors import FLOORS, raised
from tfmot_atmc.math import allocate_budget, l0_masks


def _factors(*arrays, costs=None):
    costs = costs or [1.0] * len(arrays)
    return [
        Factor(f"layer{i}/kernel:W", "W", keras.Variable(array, name=f"v{i}"), cost=cost)
        for i, (array, cost) in enumerate(zip(arrays, costs, strict=True))
    ]


def _built(constraint, factors):
    size = sum(int(np.prod(f.variable.shape)) for f in factors)

    def add(**arguments):
        given = {k: v for k, v in arguments.items() if k != "initializer"}
        return keras.Variable(arguments["initializer"], trainable=False, **given)

    constraint.build(factors, size, add)
    return constraint


def test_a_layer_of_small_weights_keeps_what_is_assured_to_it():
    small = np.array([0.01, 0.03, 0.02, 0.04], "float32")
    large = np.linspace(1, 2, 16, dtype="float32")
    factors = _factors(small, large)
    values = [small, large]
    # 8 nonzeros, 4 of them assured: by roots of 4 and 16, one to the first and three to the second.
    assert allocate_budget([4, 16], 4, 0.5) == [1, 3]
    floored = _built(FlooredSparsity(k=8, floors=0.5), factors).finalized(values)
    np.testing.assert_array_equal(floored[0], np.array([0, 0, 0, 0.04], "float32"))
    assert np.count_nonzero(floored[1]) == 7 and (floored[1][-7:] == large[-7:]).all()
    plain = _built(GlobalSparsity(k=8), factors).finalized(values)
    assert not plain[0].any() and np.count_nonzero(plain[1]) == 8


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_floors_hold_the_budget_fill_it_and_leave_each_layer_its_share(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    k = data.draw(st.integers(0, sum(sizes)))
    floors = data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    values = [rng.normal(0, 10.0 ** rng.integers(-3, 3), n).astype("float32") for n in sizes]
    constraint = _built(FlooredSparsity(k=k, floors=floors), _factors(*values))
    kept = constraint.finalized(values)
    counts = [int(np.count_nonzero(value)) for value in kept]
    assert sum(counts) == k and constraint.violation(kept) is None
    shares = allocate_budget(sizes, int(floors * k), 0.5)
    assert all(count >= share for count, share in zip(counts, shares, strict=True))
    for value, before in zip(kept, values, strict=True):  # the largest of each layer
        gone = np.abs(before[value == 0])
        assert gone.size == 0 or not value.any() or gone.max() <= np.abs(value[value != 0]).min()
    if not floors:
        flat = np.sort(np.abs(np.concatenate(values)))[::-1][:k]
        assert np.isclose(np.abs(np.concatenate(kept)).sum(), flat.sum(), rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_looking_first_finds_what_raising_every_layer_does_also_among_equals(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    k = data.draw(st.integers(0, sum(sizes)))
    wanted = data.draw(st.integers(0, sum(sizes)))  # schedules ask for more, growth for less
    floors = data.draw(st.sampled_from([0.25, 0.75, 1.0]))
    digits = data.draw(st.sampled_from([0, 1, 6]))
    values = [rng.normal(0, 10.0 ** rng.integers(-1, 2), n).round(digits) for n in sizes]
    values = [value.astype("float32") for value in values]
    factors, tensors = _factors(*values), [tf.constant(value) for value in values]
    higher = raised(tensors, factors, k, floors, l0_masks)
    expected = l0_masks(higher, wanted)
    for compiled in (False, True):
        constraint = _built(FlooredSparsity(k=k, floors=floors), factors)
        found = constraint._top(tensors, wanted, compiled)
        for mask, right in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mask, right)


def test_what_is_raised_is_kept_first_whatever_an_entry_costs():
    values = [tf.constant([0.1, 0.2]), tf.constant([5.0, 6.0, 7.0])]
    factors = _factors(*(v.numpy() for v in values), costs=[9.0, 1.0])
    higher = raised(values, factors, 18.0, 1.0, l0_masks)
    masks = l0_masks(higher, 10.0, [9.0, 1.0])
    assert masks[0].numpy().tolist() == [False, True] and masks[1].numpy().tolist().count(True) == 1


def test_training_keeps_to_budget_and_floors_compiled_or_not():
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    for compiled in (False, True):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(40), keras.layers.Dense(2)])
        model.layers[-1].kernel.assign(1e-4 * model.layers[-1].kernel)
        small = atmc.compress(model, "al0", ratio=0.1)
        small.compile("sgd", "mse", jit_compile=compiled)
        small.fit(x, x[:, :2], verbose=0, callbacks=[atmc.callbacks.UpdateCompression()])
        report = small.compression_report()
        assert report.nonzeros == 32 and report.empty == ()
        assert min(f.nonzeros for f in report.factors) >= allocate_budget([240, 80], 16, 0.5)[1]


@pytest.mark.parametrize("method", ["atmc", "al0", "ap", "nap"])
def test_depthwise_layers_survive_by_default_and_the_global_budget_has_a_name(method):
    inputs = keras.Input((6, 6, 4))
    x = keras.layers.DepthwiseConv2D(3, name="each")(inputs)
    x = keras.layers.Conv2D(64, 1, name="across")(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    model.get_layer("each").kernel.assign(0.01 * model.get_layer("each").kernel)
    small = atmc.compress(model, method, ratio=0.1)
    small.finalize()
    assert small.compression_report().empty == ()
    paper = atmc.compress(model, method, ratio=0.1, floors=0)
    paper.finalize()
    assert paper.compression_report().empty == ("each",)
    again = atmc.methods.get(method, **paper.method.get_config())
    assert again.floors == 0


def test_the_right_constraint_is_made_and_contradictions_are_refused():
    growth = atmc.constraints.GradientGrowth()
    assert type(sparsity(0.1, None, "constant", None, None)) is FlooredSparsity
    assert sparsity(0.1, None, "constant", None, None).floors == FLOORS
    assert type(sparsity(0.1, None, "constant", None, None, 0.0)) is GlobalSparsity
    assert type(sparsity(0.1, None, "constant", growth, None)) is GlobalSparsity
    assert type(sparsity(0.1, None, "constant", None, 0.1)) is LayerwiseSparsity
    with pytest.raises(ValueError, match="floors=0"):
        sparsity(0.1, None, "constant", growth, None, 0.5)
    with pytest.raises(ValueError, match="floors=0"):
        sparsity(0.1, None, "constant", None, 0.1, 0.5)
    with pytest.raises(ValueError, match=r"\[0, 1\].*1.5"):
        atmc.methods.ATMC(ratio=0.1, floors=1.5)


def test_the_papers_stages_and_kept_studies_have_one_global_budget():
    paper = atmc.recipes.atmc_stages(0.05, 8, 4, "paper")
    assert {stage.method.floors for stage in paper} == {0}
    assert {s.method.floors for s in atmc.recipes.baseline_stages("ap", 0.05, 4, "paper")} == {0}
    root = pathlib.Path(__file__).parent.parent / "benchmarks"
    for path in [*(root / "studies").glob("*.yaml"), *root.glob("results/*/description.yaml")]:
        assert "\nfloors: 0" in path.read_text(), path


def test_a_study_without_floors_has_the_jobs_it_had_before_there_were_any():
    from tfmot_atmc.study.description import Description
    from tfmot_atmc.study.jobs import expand

    common = {"methods": ("al0",), "ratios": (0.1,), "bits": (32,), "seeds": (0,)}
    older = expand(Description(**common, floors=0))
    assert "floors" not in json.dumps([job.configuration for job in older.values()], default=str)
    now, said = (expand(Description(**common, **more)) for more in ({}, {"floors": FLOORS}))
    assert set(now) == set(said) and set(now) != set(older)
    layered = {"method": "al0", "arguments": {"layer_exponent": 0.1}}
    both = [
        set(expand(Description(**{**common, "methods": (layered,)}, **more)))
        for more in ({}, {"floors": 0})
    ]
    assert both[0] == both[1]
