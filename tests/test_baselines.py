# SPDX-License-Identifier: Apache-2.0
"""The methods that ATMC is compared with: one-shot pruning and low rank."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmot_atmc import compress, datasets, strip_compression
from tfmot_atmc.attacks import FGSM
from tfmot_atmc.constraints import FixedSupport, GlobalRank
from tfmot_atmc.kernels import LowRankKernel
from tfmot_atmc.math import kernel_matrix, matrix_kernel, matrix_shape
from tfmot_atmc.methods import ALR, AP, NAP
from tfmot_atmc.recipes import run_stages
from tfmot_atmc.recipes.settings import CompressionSettings

layers = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def digits():
    data = datasets.load("digits", limit=96)
    return data.x_train[:64], data.y_train[:64]


def perceptron():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(12, activation="relu", name="one"),
            layers.Dense(16, activation="relu", name="wide"),
            layers.Dense(10, name="two"),
        ]
    )


def train(small, digits, epochs=2):
    small.compile(keras.optimizers.SGD(0.1, momentum=0.9), LOSS)
    small.fit(*digits, batch_size=16, epochs=epochs, verbose=0)
    return small


def factors(small):
    return {f.name: f.variable.numpy() for k in small.kernels for f in k.factors}


def test_one_shot_pruning_keeps_the_largest_weights_of_the_start_and_no_others(digits, tmp_path):
    dense = perceptron()
    weights = np.concatenate([np.abs(w.numpy()).ravel() for w in dense.weights if w.ndim == 2])
    threshold = np.sort(weights)[-560]
    small = compress(dense, AP(ratio=0.5), attack=FGSM(epsilon=0.1))
    assert small.constraints[0].budget == 560  # half of 64 * 12 + 12 * 16 + 16 * 10
    before = factors(small)
    kept = {name: value != 0 for name, value in before.items()}
    assert sum(int(mask.sum()) for mask in kept.values()) == 560
    assert min(np.abs(v[v != 0]).min() for v in before.values()) == pytest.approx(threshold)
    train(small, digits)
    for name, value in factors(small).items():
        assert not value[~kept[name]].any()
        assert np.abs(value - before[name]).max() > 0
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    train(again, digits, epochs=1)
    assert all(not value[~kept[name]].any() for name, value in factors(again).items())
    plain = strip_compression(again)
    assert again.compression_report().nonzeros <= 560
    np.testing.assert_allclose(
        plain.predict(digits[0], verbose=0), again.predict(digits[0], verbose=0), atol=1e-5
    )


def test_pruning_with_a_codebook_keeps_both_constraints(digits):
    small = compress(perceptron(), AP(k=60, bits=2, codebook_begin=2), attack=FGSM(epsilon=0.1))
    train(small, digits)
    small.finalize()
    report = small.compression_report()
    assert report.nonzeros <= 60 and report.max_distinct <= 4


def test_nonadversarial_pruning_refuses_an_attack_but_is_measured_under_one(digits):
    with pytest.raises(ValueError, match="NAP trains on clean inputs. Drop `attack`"):
        compress(perceptron(), NAP(ratio=0.5), attack=FGSM(epsilon=0.1))
    small = compress(perceptron(), NAP(ratio=0.1), validation_attack=FGSM(epsilon=0.1))
    small.compile("sgd", LOSS)
    history = small.fit(*digits, validation_data=digits, epochs=1, verbose=0).history
    assert "robust_loss" not in history and "val_robust_accuracy" in history


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (4, 4), (2, 2, 3, 5)])
def test_low_rank_kernels_start_at_the_kernel_with_balanced_factors(shape):
    kernel = np.random.default_rng(0).normal(size=shape).astype("float32")
    parts = LowRankKernel().initial_values(kernel)
    assert parts["A"].shape == shape
    side = min(int(np.prod(shape[:-1])), shape[-1])
    assert parts["B"].shape == (side, side)
    np.testing.assert_allclose(LowRankKernel().compose(parts), kernel, atol=1e-5)
    norms = [np.linalg.norm(parts[name]) for name in ("A", "B")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_separable_kernel_is_read_as_vertical_times_horizontal_filters():
    kernel = np.arange(3 * 4 * 2 * 5, dtype="float32").reshape(3, 4, 2, 5)
    matrix = kernel_matrix(kernel, separable=True)
    assert matrix.shape == matrix_shape(kernel.shape, separable=True) == (6, 20)
    assert matrix[2 * 2 + 1, 3 * 5 + 4] == kernel[2, 3, 1, 4]
    for source in (kernel, tf.constant(kernel)):
        there = kernel_matrix(source, separable=True)
        back = matrix_kernel(there, kernel.shape, separable=True)
        np.testing.assert_array_equal(there, matrix)
        np.testing.assert_array_equal(back, kernel)
    parts = LowRankKernel(separable=True).initial_values(kernel)
    assert parts["A"].shape == kernel.shape and parts["B"].shape == (6, 6)
    np.testing.assert_allclose(LowRankKernel(True).compose(parts), kernel, atol=1e-3)
    # A component of (5, 5, 1, 20) takes 25 + 20 as a matrix of filters, 5 + 100 as two filters.
    assert kernel_matrix(np.zeros((5, 5, 1, 20)), separable=True).shape == (25, 20)
    assert kernel_matrix(np.zeros((7, 3)), separable=True).shape == (7, 3)


def test_separable_ranks_cost_what_both_filters_hold(tmp_path):
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(6, 3)])
    first, second = rng.normal(size=(3, 4)), rng.normal(size=(3, 6))  # of rank one, separably
    model.layers[0].kernel.assign(np.einsum("hi,wo->hwio", first, second))
    # A component takes 3 * 4 + 3 * 6 = 30 parameters; 0.2 of 216 allows one, 43.
    small = compress(model, ALR(ratio=0.2, separable=True))
    assert small.constraints[0].ranks == [1] and small.constraints[0].budget == 43
    assert small.compression_report().nonzeros == 30
    before, after = model.layers[0].kernel, strip_compression(small).layers[0].kernel
    np.testing.assert_allclose(after, before, atol=1e-5)
    # As one matrix of 36 x 6 the same kernel has rank three.
    assert np.linalg.matrix_rank(before.numpy().reshape(36, 6), tol=1e-5) == 3
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert again.method.separable and again.constraints[0].ranks == [1]
    values = [f.variable.numpy() for k in again.kernels for f in k.factors]
    assert again.constraints[0].violation(values) is None
    values[1] = np.ones_like(values[1])
    assert "beyond its rank" in again.constraints[0].violation(values)


def test_ranks_are_chosen_over_all_layers_by_singular_value_within_the_budget(digits):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(3, use_bias=False), layers.Dense(4, use_bias=False)]
    )
    first, second = np.zeros((4, 3), "float32"), np.zeros((3, 4), "float32")
    first[[0, 1, 2], [0, 1, 2]] = 5.0, 0.5, 0.1  # singular values; a component costs 4 + 3
    second[[0, 1, 2], [0, 1, 2]] = 3.0, 2.0, 1.0
    for variable, value in zip(model.weights, (first, second), strict=True):
        variable.assign(value)
    # 0.9 * 24 = 21.6 parameters are three components: 5, 3, and of the rest the largest, 2.
    small = compress(keras.models.clone_model(model), ALR(ratio=0.9))
    assert small.constraints[0].budget == 21
    for target, source in zip(model.weights, (first, second), strict=True):
        target.assign(source)
    small = compress(model, ALR(ratio=0.9))
    assert small.constraints[0].ranks == [1, 2]
    kernels = [w.numpy() for w in strip_compression(small).weights]
    np.testing.assert_allclose(kernels[0], np.diag([5.0, 0, 0, 0])[:, :3], atol=1e-5)
    np.testing.assert_allclose(kernels[1], np.eye(3, 4) * [3, 2, 0, 0], atol=1e-5)
    with pytest.raises(ValueError, match="one component a kernel already takes 14"):
        compress(keras.models.clone_model(model), ALR(ratio=0.5))


def test_relative_ranks_do_not_starve_kernels_of_small_values():
    def ranks(**options):
        model = keras.Sequential(
            [keras.Input((4,)), layers.Dense(4, use_bias=False), layers.Dense(4, use_bias=False)]
        )
        for variable, diagonal in zip(model.weights, ([5.0, 2.5, 1, 1], [3, 2, 1, 1]), strict=True):
            variable.assign(np.diag(diagonal))
        return compress(model, ALR(ratio=0.75, **options)).constraints[0].ranks

    # 24 parameters are three components of 8: the third is 2.5 of the first kernel by its value,
    # and 2 of the second, two thirds of its largest, against one half.
    assert ranks() == [2, 1]
    assert ranks(relative=True) == [1, 2]
    assert ALR.from_config(ALR(0.5, relative=True).get_config()).relative


def test_ranks_may_be_given_for_each_kernel_within_the_budget(tmp_path):
    def made(ranks):  # components cost 64 + 12, 12 + 16 and 16 + 10
        return compress(perceptron(), ALR(ratio=0.4, ranks=ranks))

    small = made([3, 4, 4])
    assert small.constraints[0].ranks == [3, 4, 4]
    assert small.compression_report().nonzeros == 3 * 76 + 4 * 28 + 4 * 26 <= 448
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert again.constraints[0].ranks == [3, 4, 4] and again.method.ranks == [3, 4, 4]
    with pytest.raises(ValueError, match="3 integers, of at most .12, 12, 10."):
        made([3, 5])
    with pytest.raises(ValueError, match="at most .12, 12, 10.: .* Received .1, 1, 11"):
        made([1, 1, 11])
    with pytest.raises(ValueError, match="take 472 parameters, and `ratio` 0.4 allows 448"):
        made([3, 5, 4])
    for wrong in ([0, 1, 1], [1.5, 1, 1]):
        with pytest.raises(ValueError, match="integers of at least 1"):
            made(wrong)


def test_a_low_rank_model_that_goes_on_at_lower_ranks_trains_what_is_saved(digits):
    first = compress(perceptron(), ALR(ratio=0.8))
    train(first, digits)
    lower = compress(first, ALR(ratio=0.4))
    ranks = lower.constraints[0].ranks
    assert sum(ranks) < sum(first.constraints[0].ranks)
    kernels = [w.numpy() for w in strip_compression(first).weights if len(w.shape) == 2]
    for kernel, factors, rank in zip(kernels, lower.kernels, ranks, strict=True):
        left, values, right = np.linalg.svd(kernel.astype(np.float64), full_matrices=False)
        nearest = (left[:, :rank] * values[:rank]) @ right[:rank]
        np.testing.assert_allclose(factors.compose().numpy(), nearest, atol=1e-5)
    train(lower, digits)
    values = [f.variable.numpy() for k in lower.kernels for f in k.factors]
    assert lower.constraints[0].violation(values) is None  # in training, not only once finalised
    x = digits[0]
    np.testing.assert_allclose(
        lower.model(x).numpy(), strip_compression(lower)(x).numpy(), atol=1e-4
    )
    # At the same ranks it goes on from the factors as they are.
    again = compress(lower, ALR(ratio=0.4))
    for value, factor in zip(values, (f for k in again.kernels for f in k.factors), strict=True):
        np.testing.assert_array_equal(factor.variable.numpy(), value)


def test_ranks_stay_through_training_saving_and_stripping(digits, tmp_path):
    small = compress(perceptron(), ALR(ratio=0.4), attack=FGSM(epsilon=0.1))
    ranks = small.constraints[0].ranks
    train(small, digits)
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert again.constraints[0].ranks == ranks and sum(ranks) < 12 + 12 + 10
    kernels = [w.numpy() for w in strip_compression(again).weights if len(w.shape) == 2]
    assert [np.linalg.matrix_rank(kernel, tol=1e-5) for kernel in kernels] == ranks
    report = again.compression_report()
    assert report.nonzeros <= again.constraints[0].budget == 448
    values = [f.variable.numpy() for k in again.kernels for f in k.factors]
    assert again.constraints[0].violation(values) is None
    values[1] = np.ones_like(values[1])
    assert "beyond its rank" in again.constraints[0].violation(values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedSupport(), "Give `ratio` or `k`"),
        (lambda: FixedSupport(0.1, 3), "Give `ratio` or `k`"),
        (lambda: FixedSupport(ratio=1.5), r"\(0, 1\]"),
        (lambda: AP(k=-1), "at least 0"),
        (lambda: GlobalRank(0.0), r"\(0, 1\]"),
        (lambda: ALR(ratio=2), r"\(0, 1\]"),
    ],
)
def test_budgets_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_method_runs_its_stages_and_nap_sees_no_attack(tmp_path):
    data = datasets.load("digits", limit=80)
    for name in ("al0", "alr", "ap", "nap"):
        settings = CompressionSettings(
            method=name, ratio=0.5, dense_epochs=1, epochs=1, steps=1, out=str(tmp_path / name)
        ).resolved()
        stages = settings.stages()
        assert [stage.name for stage in stages] == ["dense", "l0" if name == "al0" else name]
        attacked = [stage.make_attack(FGSM(epsilon=0.1)) for stage in stages]
        assert all((attack is None) == (name == "nap") for attack in attacked)
    small = run_stages(
        perceptron(), stages, data, attack=FGSM(epsilon=0.1), out_dir=tmp_path / "nap", verbose=0
    )
    history = json.loads((tmp_path / "nap" / "nap.json").read_text())["history"]
    assert "val_robust_accuracy" in history and "robust_accuracy" not in history
    assert small.compression_report().nonzeros <= 560 and small.attack is None
