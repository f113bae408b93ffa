# SPDX-License-Identifier: Apache-2.0
"""Where parts meet: sites, roles, selections, frozen layers, budgets in other currencies."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.residual import compiled, data, residual
from tests.test_budget import network
from tfmot_atmc import (
    compress,
    constraints,
    export_tflite,
    plan_budget,
    quantize_after_training,
    strip_compression,
)
from tfmot_atmc.kernels import FactorizedKernel, Kernel, PlainKernel
from tfmot_atmc.methods import AL0, ATMC, Method


def perceptron():
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(16, activation="relu", name="wide"),
            layers.Dense(4, name="head"),
        ]
    )


# --- sites ----------------------------------------------------------------------------------------


class Told(AL0):
    """Keeps what it is told of the sites."""

    def kernel_for(self, site):
        self.__dict__.setdefault("sites", {})[site.layer.split("/")[-1]] = site
        return super().kernel_for(site)


def test_a_method_is_told_of_shapes_positions_channels_and_who_shares_them():
    method = Told(ratio=0.5)
    small = compress(residual(), method)
    sites = method.sites
    assert list(sites) == ["stem", "depth", "point", "twice", "head"]
    assert [site.index for site in sites.values()] == [0, 1, 2, 3, 4]
    stem, depth, head = sites["stem"], sites["depth"], sites["head"]
    assert (stem.kind, stem.shape, stem.fan_in, stem.positions) == ("Conv2D", (3, 3, 3, 4), 27, 64)
    assert (stem.inputs, stem.outputs, stem.operations) == (3, 4, 108 * 64)
    assert (depth.fan_in, depth.inputs, depth.outputs) == (9, 4, 4) and not depth.factorizable
    assert sites["twice"].positions == 16 and (head.positions, head.fan_in) == (1, 4)
    assert set(stem.shares_outputs) == {sites["depth"].name, sites["point"].name}
    assert head.shares_outputs == () == sites["twice"].shares_outputs
    factors = small.kernels[0].factors
    assert factors[0].site == stem and (factors[0].role, factors[0].cost) == ("weight", 1.0)


class Former(AL0):
    """Written when `kernel_for` was told of one thing only."""

    def kernel_for(self, factorizable):
        assert isinstance(factorizable, bool)
        return FactorizedKernel() if factorizable else PlainKernel()


def test_a_method_that_asks_for_the_former_argument_gets_it():
    small = compress(residual(), Former(ratio=0.5))
    kinds = [type(kernel.kernel).__name__ for kernel in small.kernels]
    assert kinds == ["FactorizedKernel", "PlainKernel"] + 3 * ["FactorizedKernel"]


def test_a_shared_layer_is_one_site_with_its_calls():
    shared = layers.Dense(6, name="shared")
    inputs = keras.Input((6,))
    method = Told(ratio=0.5)
    compress(keras.Model(inputs, layers.Dense(2)(shared(shared(inputs)))), method)
    assert method.sites["shared"].calls == 2 and method.sites["shared"].operations == 72


# --- currencies -----------------------------------------------------------------------------------


class Operations(AL0):
    """A budget of multiply-accumulates."""

    def cost_of(self, site, part):
        return float(site.positions)


def test_a_budget_may_count_operations():
    x, y = data((8, 8, 3), classes=5)
    small = compress(residual(), Operations(ratio=0.2, schedule="constant"))
    (budget,) = small.constraints
    dense = 108 * 64 + 36 * 64 + 16 * 64 + 144 * 16 + 20
    assert budget.total == dense and budget.budget == dense // 5
    compiled(small).fit(x, y, verbose=0)
    values = [(np.count_nonzero(f.variable), f.cost) for f in small._factors()]
    spent = sum(n * cost for n, cost in values)
    assert budget.budget - 64 < spent <= budget.budget
    assert budget.violation([f.variable.numpy() for f in small._factors()]) is None
    dense_values = [np.ones(f.variable.shape, np.float32) for f in small._factors()]
    assert "of cost, budget 2512" in budget.violation(dense_values)
    strip_compression(small)
    with pytest.raises(ValueError, match="must cost 1"):
        compress(residual(), Operations(ratio=0.2, layer_exponent=0.5))


# --- roles ----------------------------------------------------------------------------------------


class ScoredKernel(Kernel):
    """Fixed weights, of which those with a positive score are used."""

    roles = {"W": "fixed", "S": "score"}

    def initial_values(self, kernel):
        scores = np.linspace(-1, 1, kernel.size, dtype=np.float32).reshape(kernel.shape)
        return {"W": np.asarray(kernel), "S": scores}

    def compose(self, factors):
        w, s = (tf.convert_to_tensor(factors[name]) for name in ("W", "S"))
        return w * (s + tf.stop_gradient(tf.cast(s > 0, s.dtype) - s))


class Scored(Method):
    """Trains scores of fixed weights."""

    def kernel_for(self, site):
        return ScoredKernel()

    def constraints(self):
        return [constraints.GlobalSparsity(ratio=0.1)]  # has nothing to act on


@pytest.mark.parametrize("toggled", [False, True])
def test_scores_are_trained_and_fixed_weights_stay_bit_for_bit(toggled, tmp_path):
    small = compress(perceptron(), Scored())
    if toggled:  # Keras makes all of a layer's variables trainable then
        small.trainable = False
        small.trainable = True
    fixed = {f.name: f.variable.numpy() for f in small._factors() if f.role == "fixed"}
    scores = [f.variable.numpy() for f in small._factors() if f.role == "score"]
    assert len(fixed) == len(scores) == 2
    trained = {id(v) for v in small.trainable_variables}
    for factor in small._factors():
        assert (id(factor.variable) in trained) == (factor.role == "score") == factor.trained
    compiled(small, 0.5).fit(*data(), verbose=0)
    for factor in small._factors():
        if factor.role == "fixed":
            np.testing.assert_array_equal(factor.variable, fixed[factor.name])
    assert any((f.variable.numpy() != s).any() for f, s in zip(_scores(small), scores, strict=True))
    assert small.constraints[0].violation([]) is None
    kept = sum(int((f.variable.numpy() > 0).sum()) for f in _scores(small))
    assert small.compression_report().parts() == {"W": kept}
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    x = data()[0]
    np.testing.assert_array_equal(again.predict(x, verbose=0), small.predict(x, verbose=0))
    np.testing.assert_allclose(
        strip_compression(again).predict(x, verbose=0), small.predict(x, verbose=0), rtol=1e-5
    )


def _scores(small):
    return [f for f in small._factors() if f.role == "score"]


def test_fixed_weights_are_restored_bit_for_bit_from_weights_alone(tmp_path):
    small = compiled(compress(perceptron(), Scored()))
    small.save_weights(tmp_path / "small.weights.h5")
    other = compress(perceptron(), Scored())
    other.load_weights(tmp_path / "small.weights.h5")
    for mine, theirs in zip(small._factors(), other._factors(), strict=True):
        np.testing.assert_array_equal(mine.variable, theirs.variable)


# --- frozen layers --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 2])
def test_a_layer_frozen_after_wrapping_is_left_as_it_is(bits, tmp_path):
    method = ATMC(ratio=0.1, bits=bits, schedule="constant", codebook_begin=0)
    small = compress(perceptron(), method)
    wide = small.kernels[0].layer
    wide.trainable = False
    before = [v.numpy() for v in small.kernels[0].variables.values()]
    assert small.constraints[-1].budget == 6  # a tenth of the head's 64
    compiled(small).fit(*data(), epochs=2, verbose=0)
    for value, variable in zip(before, small.kernels[0].variables.values(), strict=True):
        np.testing.assert_array_equal(variable, value)
    head = small.kernels[1].variables.values()
    assert sum(np.count_nonzero(v) for v in head) <= 6
    plain = strip_compression(small)
    np.testing.assert_array_equal(plain.get_layer("wide").kernel, before[0])
    small.save(tmp_path / "frozen.keras")
    again = keras.saving.load_model(tmp_path / "frozen.keras")
    assert not again.kernels[0].layer.trainable and len(again.kernels) == 2
    for mine, theirs in zip(small.weights, again.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert again.constraints[-1].budget == 6


def test_growth_and_layer_budgets_leave_frozen_layers_alone():
    for method in (
        AL0(ratio=0.2, schedule="constant", growth=constraints.GradientGrowth(0.3, 1, 0, 9)),
        AL0(ratio=0.2, schedule="constant", layer_exponent=0.5),
    ):
        small = compress(perceptron(), method)
        small.kernels[0].layer.trainable = False
        before = small.kernels[0].variables["W"].numpy()
        compiled(small).fit(*data(), epochs=2, verbose=0)
        np.testing.assert_array_equal(small.kernels[0].variables["W"], before)
        assert np.count_nonzero(small.kernels[1].variables["W"]) <= 12
        small.finalize()
        np.testing.assert_array_equal(small.kernels[0].variables["W"], before)


# --- selections and going on ----------------------------------------------------------------------


def test_a_selection_is_kept_when_the_model_goes_on():
    first = compress(perceptron(), "al0", ratio=0.3, layers=["wide"])
    second = compress(first, "atmc", ratio=0.2)
    assert [kernel.name for kernel in second.kernels] == [kernel.name for kernel in first.kernels]
    third = compress(second, "al0", ratio=0.2, layers=["head"])
    assert [kernel.layer.name for kernel in third.kernels] == ["head"]


def test_factors_that_are_dropped_are_named():
    first = compress(perceptron(), "atmc", ratio=0.5, schedule="constant")
    first.kernels[0].variables["U"].assign(np.full((8, 8), 0.1, np.float32))
    with pytest.warns(UserWarning, match=r"wide/kernel \(V, U, C\).* are not those .* under AL0"):
        second = compress(first, "al0", ratio=0.4)
    np.testing.assert_allclose(
        second.kernels[0].variables["W"], strip_compression(first).get_layer("wide").kernel
    )


def test_kernels_that_stay_the_same_go_on_beside_others(recwarn):
    first = compress(perceptron(), "atmc", ratio=0.9, layers=["wide"], schedule="constant")
    first.kernels[0].variables["U"].assign(np.eye(8, dtype=np.float32))
    second = compress(first, "atmc", ratio=0.9, layers=["wide", "head"], schedule="constant")
    np.testing.assert_array_equal(second.kernels[0].variables["U"], np.eye(8))
    assert set(second.kernels[1].variables) == {"V", "U", "C"}
    assert not [w for w in recwarn if "are not those" in str(w.message)]


# --- bytes ----------------------------------------------------------------------------------------


def test_a_size_is_planned_for_the_layers_that_are_compressed(tmp_path):
    with pytest.raises(ValueError, match="smallest possible file"):
        compress(network(), "atmc", max_bytes=6144, layers=["head"])
    small = compress(network(), "atmc", max_bytes=12000, layers=["wide"])
    plan = plan_budget(network(), 12000, layers=["wide"])
    assert small.method.ratio == plan.ratio < plan_budget(network(), 12000).ratio
    plain = strip_compression(small)
    report = export_tflite(plain, tmp_path / "m.tflite", values="int8", measure_latency=False)
    assert report.bytes <= 12000


def test_a_size_needs_a_method_with_a_ratio():
    with pytest.raises(ValueError, match="'da' has no `ratio`.* alr, ap, atmc"):
        compress(network(), "da", max_bytes="8KB")


def test_plain_kernels_describe_themselves():
    kernel = PlainKernel()
    assert (
        keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(kernel)
        ).get_config()
        == {}
    )


def test_a_model_with_a_frozen_layer_is_quantised(tmp_path):
    small = compress(perceptron(), "al0", ratio=0.5)
    small.kernels[0].layer.trainable = False
    few = quantize_after_training(small, 2)
    assert len(few.kernels) == 2 and not few.kernels[0].layer.trainable
    assert few.compression_report().max_distinct <= 4
