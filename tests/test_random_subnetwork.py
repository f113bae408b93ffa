# SPDX-License-Identifier: Apache-2.0
"""Subnetworks of fixed random weights: only scores are trained, and counts are exact."""

import keras
import numpy as np
import pytest
from mask_training import ATTACK, DATA, X, fitted, network

from tfmot_atmc import compress, methods, models, strip_compression
from tfmot_atmc.kernels import Site
from tfmot_atmc.recipes import run_stages
from tfmot_atmc.recipes.settings import CompressionSettings


# 228 weights: a twentieth is 11, shared out 36^0.1 : 192^0.1 = 1.431 : 1.692 as 5.04 and the rest.
@pytest.mark.parametrize("weights", ["binary", "constant"])
def test_only_scores_are_trained_and_each_layer_keeps_its_own_number(weights, tmp_path):
    method = methods.RandomSubnetwork(ratio=0.05, weights=weights, weights_seed=5)
    model = compress(network(), method, attack=ATTACK)
    assert [v.name for v in model.trainable_variables] == ["kernel", "kernel"]
    assert sum(v.value.shape.num_elements() for v in model.trainable_variables) == 228
    before = [k.kernel.weights(k.shape) for k in model.kernels]
    start = [k.variables["S"].numpy() for k in model.kernels]
    others = {v.path: v.numpy() for v in model.model.weights if v.name in ("bias", "beta", "gamma")}
    assert fitted(model) == [[5, 6]] * 4
    for kernel, fixed, scores in zip(model.kernels, before, start, strict=True):
        composed = kernel.compose().numpy()
        np.testing.assert_array_equal(composed[composed != 0], fixed[composed != 0])
        assert (kernel.variables["S"].numpy() != scores).any()
    for variable in model.model.weights:
        if variable.path in others:
            np.testing.assert_array_equal(variable, others[variable.path])
    magnitudes = [np.unique(np.abs(w)).tolist() for w in before]
    share = 11 / 228
    wanted = (
        [[1.0], [1.0]]
        if weights == "binary"
        else [[np.float32((2 / (9 * share)) ** 0.5)], [np.float32((2 / (64 * share)) ** 0.5)]]
    )
    np.testing.assert_allclose(magnitudes, wanted, rtol=1e-6)
    assert model.compression_report().nonzeros == 11
    outputs = model.predict(X, verbose=0)
    plain = strip_compression(model)
    np.testing.assert_allclose(plain.predict(X, verbose=0), outputs, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), outputs)
    assert again.method.weights_seed == 5


def test_scores_of_another_seed_are_refused(tmp_path):
    first = compress(network(), "random_subnetwork", ratio=0.1, weights_seed=1)
    first.save_weights(tmp_path / "first.weights.h5")
    same = compress(network(), "random_subnetwork", ratio=0.1, weights_seed=1)
    same.load_weights(tmp_path / "first.weights.h5")
    np.testing.assert_array_equal(same.predict(X, verbose=0), first.predict(X, verbose=0))
    other = compress(network(), "random_subnetwork", ratio=0.1, weights_seed=2)
    with pytest.raises(ValueError, match="other fixed weights than seed=2"):
        other.load_weights(tmp_path / "first.weights.h5")
    with pytest.raises(ValueError, match="other fixed weights than seed=3"):
        compress(first, "random_subnetwork", ratio=0.1, weights_seed=3)
    with pytest.raises(ValueError, match="other fixed weights"):
        compress(first, "random_subnetwork", ratio=0.1, weights_seed=1, weights="constant")
    more = compress(first, "random_subnetwork", ratio=0.2, weights_seed=1)  # from the same scores
    assert sum(np.count_nonzero(k.compose()) for k in more.kernels) == 45


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("random_subnetwork", ["scores"]),
        ("robust_scratch_ticket", ["scores"]),
        ("hydra", ["dense", "scores", "weights"]),
        ("binary_connect", ["binary"]),
    ],
)
def test_the_command_line_knows_the_methods_and_their_stages(method, names):
    settings = CompressionSettings(method=method, dataset="digits").resolved()
    stages = settings.stages()
    assert [stage.name for stage in stages] == names
    kernel = stages[-1].method.kernel_for(Site("a/kernel", "a", "Dense", (30, 40), fan_in=30))
    assert kernel.initial_values(np.ones((30, 40), np.float32))
    assert getattr(stages[-1].method, "ratio", settings.ratio) == settings.ratio


class _Killed(Exception):
    pass


class Kill(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            raise _Killed


def test_an_interrupted_run_ends_at_the_same_scores(tmp_path):
    stages = methods.get("random_subnetwork", ratio=0.1).stages(2)
    assert [(s.name, s.epochs, s.learning_rate, s.weight_decay) for s in stages] == [
        ("scores", 2, 0.1, 5e-4)
    ]
    common = {"attack": ATTACK, "verbose": 0}
    whole = run_stages(network(), stages, DATA, out_dir=tmp_path / "a", **common)
    with pytest.raises(_Killed):
        run_stages(
            network(), stages, DATA, out_dir=tmp_path / "b", **common, extra_callbacks=[Kill()]
        )
    resumed = run_stages(network(), stages, DATA, out_dir=tmp_path / "b", **common)
    for one, two in zip(whole.kernels, resumed.kernels, strict=True):
        np.testing.assert_array_equal(one.variables["S"], two.variables["S"])
    assert whole.step == resumed.step


def test_scratch_tickets_have_one_ratio_and_real_weights():
    ticket = methods.get("robust_scratch_ticket", ratio=0.25, weights_seed=3)
    model = compress(network(), ticket, attack=ATTACK)
    assert [np.count_nonzero(k.compose()) for k in model.kernels] == [9, 48]
    for kernel, fan_in in zip(model.kernels, (9, 64), strict=True):
        composed = np.abs(kernel.compose().numpy())
        np.testing.assert_allclose(composed[composed > 0], (2 / fan_in) ** 0.5, rtol=1e-6)
        scores = np.abs(kernel.variables["S"].numpy())
        assert 0.8 * fan_in**-0.5 < scores.max() <= fan_in**-0.5
    (stage,) = ticket.stages(8, "paper")
    assert (stage.decay, stage.batch_size, stage.method.weights_seed) == ((0.5, 0.75), 256, 3)
    assert methods.RobustScratchTicket.from_config(ticket.get_config()).ratio == 0.25


def test_budgets_that_leave_a_layer_empty_and_bad_values_are_refused():
    with pytest.raises(ValueError, match="budget of 1 weights leaves some of the 2 layers"):
        compress(network(), "random_subnetwork", k=1)
    two = compress(network(), "random_subnetwork", k=2)
    assert [np.count_nonzero(k.compose()) for k in two.kernels] == [1, 1]
    whole = compress(network(), "random_subnetwork", ratio=1.0)
    assert [np.count_nonzero(k.compose()) for k in whole.kernels] == [36, 192]
    small = methods.RandomSubnetwork(k=150, layer_exponent=0.0)  # 75 each, but there are 36
    sites = [Site(n, n, "Dense", (s, 1), i, sizes=(36, 192)) for i, (n, s) in enumerate(SIZES)]
    assert [small.kept(site) for site in sites] == [36, 114]
    for bad in (
        {},
        {"ratio": 0.1, "k": 3},
        {"ratio": 0.0},
        {"k": 0},
        {"ratio": 0.1, "layer_exponent": 1.5},
        {"ratio": 0.1, "weights": "ternary"},
        {"ratio": 0.1, "width": 0.0},
        {"ratio": 0.1, "weights_seed": -1},
    ):
        with pytest.raises(ValueError, match="Received"):
            methods.RandomSubnetwork(**bad)


SIZES = (("a", 36), ("b", 192))


def test_last_batch_norm_takes_the_scale_out_of_the_logits():
    base = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, use_bias=False, name="d")])
    model = models.add_last_batch_norm(base)
    x = np.random.default_rng(0).normal(size=(32, 5)).astype(np.float32)
    first = np.asarray(model(x, training=True))
    expected = x @ base.layers[0].kernel.numpy()
    expected = (expected - expected.mean(0)) / np.sqrt(expected.var(0) + 1e-5)
    np.testing.assert_allclose(first, expected, atol=1e-4)
    kernel = model.get_layer("d").kernel
    kernel.assign(10 * kernel)
    np.testing.assert_allclose(np.asarray(model(x, training=True)), first, atol=1e-3)
    assert len(model.trainable_variables) == 1
    np.testing.assert_allclose(10 * base.layers[0].kernel.numpy(), kernel, rtol=1e-6)  # a copy
    with pytest.raises(ValueError, match="normalised already"):
        models.add_last_batch_norm(model)
    for ending in (
        [keras.layers.Dense(3, activation="softmax")],
        [keras.layers.Dense(3), keras.layers.Softmax()],
    ):
        with pytest.raises(ValueError, match="probabilities"):
            models.add_last_batch_norm(keras.Sequential([keras.Input((5,)), *ending]))
    with pytest.raises(ValueError, match="must be built"):
        models.add_last_batch_norm(keras.Sequential([keras.layers.Dense(3)]))
