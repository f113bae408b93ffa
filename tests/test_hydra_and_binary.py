# SPDX-License-Identifier: Apache-2.0
"""HYDRA, whose scores choose among trained weights, and BinaryConnect, whose weights are signs."""

import keras
import numpy as np
import pytest
from mask_training import ATTACK, DATA, X, fitted, network

from tfmot_atmc import compress, methods, strip_compression
from tfmot_atmc.constraints import Box, Factor
from tfmot_atmc.recipes import run_stages


def values(model, part):
    return [k.variables[part].numpy() for k in model.kernels]


def test_hydra_starts_as_magnitude_pruning_of_each_layer():
    start = network()
    model = compress(start, methods.HYDRA(ratio=0.25, layer_exponent=1.0), attack=ATTACK)
    for kernel, kept, fan_in in zip(model.kernels, (9, 48), (9, 64), strict=True):
        dense = start.get_layer(kernel.layer.name).kernel.numpy()
        order = np.argsort(-np.abs(dense.ravel()), kind="stable")[:kept]
        wanted = np.zeros(dense.size, np.float32)
        wanted[order] = dense.ravel()[order]
        np.testing.assert_array_equal(kernel.compose().numpy().ravel(), wanted)
        scores = np.sqrt(6 / fan_in) * dense / np.abs(dense).max()
        np.testing.assert_allclose(kernel.variables["S"], scores, rtol=1e-5)


def test_hydra_trains_scores_of_frozen_weights_and_then_weights_under_a_frozen_mask(tmp_path):
    method = methods.HYDRA(ratio=0.1)  # 22 of 228: 36^0.1 : 192^0.1 is 10 and 12
    stages = method.stages(2)
    assert [(s.name, s.epochs, s.learning_rate) for s in stages] == [
        ("scores", 1, 0.1),
        ("weights", 2, 0.01),
    ]
    start = network()
    dense = [start.get_layer(name).kernel.numpy() for name in ("conv", "head")]
    common = {"attack": ATTACK, "verbose": 0, "out_dir": tmp_path}
    scored = run_stages(start, stages[:1], DATA, **common)
    assert sorted(v.name for v in scored.trainable_variables) == [
        "beta",
        "gamma",
        "kernel_S",
        "kernel_S",
    ]
    for fixed, weights in zip(values(scored, "W"), dense, strict=True):
        np.testing.assert_array_equal(fixed, weights)
    np.testing.assert_array_equal(scored.get_layer("head").bias, start.get_layer("head").bias)
    tuned = run_stages(start, stages, DATA, **common)
    for before, after in zip(values(scored, "S"), values(tuned, "S"), strict=True):
        np.testing.assert_array_equal(before, after)
    for one, two in zip(scored.kernels, tuned.kernels, strict=True):
        first, last = one.compose().numpy(), two.compose().numpy()
        np.testing.assert_array_equal(first != 0, last != 0)
        assert (first != last).any()
    assert [np.count_nonzero(k.compose()) for k in tuned.kernels] == [10, 12]
    plain = strip_compression(tuned)
    np.testing.assert_allclose(plain.predict(X, verbose=0), tuned.predict(X, verbose=0), atol=1e-5)
    again = keras.saving.load_model(tmp_path / "weights.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), tuned.predict(X, verbose=0))


def test_hydra_keeps_its_counts_at_every_step_and_lwm_its_first_mask():
    model = compress(network(), "hydra", ratio=0.1, attack=ATTACK)
    assert fitted(model) == [[10, 12]] * 4
    start = network()
    lwm = methods.HYDRA(ratio=0.1, learn=False)
    assert [stage.name for stage in lwm.stages(4)] == ["weights"]
    model = compress(start, lwm, attack=ATTACK)
    first = [k.compose().numpy() != 0 for k in model.kernels]
    assert fitted(model, rate=0.01) == [[10, 12]] * 4
    for kernel, mask in zip(model.kernels, first, strict=True):
        np.testing.assert_array_equal(kernel.compose().numpy() != 0, mask)
    # where methods are compared, both phases together take as long as those of others
    assert sum(s.epochs for s in methods.HYDRA(ratio=0.1).stages(12, phases="pruning")) == 12
    with pytest.raises(ValueError, match="no scores are trained"):
        lwm.but(phase="scores")
    with pytest.raises(ValueError, match="`phase`"):
        lwm.but(phase="both")


def test_binary_weights_are_signs_whose_real_weights_stay_within_one(tmp_path):
    model = compress(network(), "binary_connect", attack=ATTACK)
    start = values(model, "latent")
    fitted(model, rate=2.0)
    for kernel, before in zip(model.kernels, start, strict=True):
        latent, composed = kernel.variables["latent"].numpy(), kernel.compose().numpy()
        assert set(np.unique(composed)) == {-1.0, 1.0}
        np.testing.assert_array_equal(composed, np.where(latent < 0, -1, 1))
        assert np.abs(latent).max() <= 1 and (latent != before).any()
    outputs = model.predict(X, verbose=0)
    plain = strip_compression(model)
    np.testing.assert_allclose(plain.predict(X, verbose=0), outputs, atol=1e-4)
    assert set(np.unique(plain.get_layer("head").kernel)) == {-1.0, 1.0}
    model.save(tmp_path / "binary.keras")
    again = keras.saving.load_model(tmp_path / "binary.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), outputs)


def test_binary_weights_can_be_pruned_while_they_are_trained(tmp_path):
    method = methods.BinaryConnect(methods.AL0(ratio=0.1, schedule="constant", floors=0))
    stages = method.stages(1, phases="pruning")
    assert [(s.name, s.optimizer) for s in stages] == [("binary", "adam"), ("l0", "adam")]
    model = run_stages(network(), stages, DATA, attack=ATTACK, verbose=0, out_dir=tmp_path)
    composed = np.concatenate([k.compose().numpy().ravel() for k in model.kernels])
    assert np.count_nonzero(composed) == 22 == model.compression_report().nonzeros
    assert set(np.unique(composed)) == {-1.0, 0.0, 1.0}
    assert all(s.learning_rate == 1e-4 for s in method.stages(1, "paper"))
    clone = methods.BinaryConnect.from_config(method.get_config())
    assert clone.method.ratio == 0.1
    for bad in (methods.AP(ratio=0.1), methods.AL0(ratio=0.1, bits=4)):
        with pytest.raises(ValueError, match="signs are all as large|no codebooks"):
            methods.BinaryConnect(bad)
    with pytest.raises(ValueError, match="methods of plain kernels"):
        compress(network(), methods.BinaryConnect(methods.ATMC(ratio=0.1)))


def test_a_box_sets_what_is_outside_to_its_nearer_end_and_leaves_the_rest():
    box, variable = Box(0.5), keras.Variable(np.float32([-2.0, -0.5, 0.1, 0.7]))
    box.build([Factor("a:W", "W", variable)], 4, None)
    given = variable.numpy()
    assert "2 entries of a:W outside" in box.violation([given])
    wanted = np.float32([-0.5, -0.5, 0.1, 0.5])
    np.testing.assert_array_equal(box.finalized([given])[0], wanted)
    np.testing.assert_array_equal(box.deploy([given])[0], wanted)
    box.project(None, None)
    np.testing.assert_array_equal(variable, wanted)
    assert box.violation([variable.numpy()]) is None
    with pytest.raises(ValueError, match="`limit`"):
        Box(0.0)
