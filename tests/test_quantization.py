# SPDX-License-Identifier: Apache-2.0
"""Quantisation after training: few values, zeros that stay, models of the same kind."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tfmot_atmc import cli, compress, quantize_after_training, strip_compression
from tfmot_atmc.compression.quantization import WAYS, quantize_values, stored_kernels
from tfmot_atmc.methods import ALR, AP, ATMC, DA, Method

layers = keras.layers
FEW = np.array([0.0, 1.0, 2.0, 10.0], np.float32)
both_ways = pytest.mark.parametrize("how", WAYS)

numbers = st.floats(-100, 100, width=32, allow_subnormal=False)
arrays = npst.arrays(np.float32, st.integers(1, 24), elements=numbers)
some_bits = st.integers(1, 4)


def distinct(value):
    return np.unique(value[value != 0]).size


def squared_error(found, value):
    return float(np.sum(np.square(found.astype(np.float64) - value)))


def network():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.DepthwiseConv2D(3, name="depthwise"),
            layers.Flatten(),
            layers.Dense(10, name="last"),
        ]
    )


def two_layers():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(5, 3, name="conv"),
            layers.Flatten(),
            layers.Dense(6, name="last"),
        ]
    )


def weights(model):
    return {w.path: np.array(w) for w in model.weights}


def is_kernel(path):
    return path.endswith("/kernel")


# --- values, by hand ----------------------------------------------------------------------------


def test_uniform_values_are_whole_multiples_of_one_scale_up_to_the_largest():
    # 3 bits: integers up to 3, scale 9 / 3; 1.5 lies half-way, and goes to the even code.
    values = np.array([0.0, 1.4, -1.6, 1.5, 4.4, -4.6, 9.0], np.float32)
    found = quantize_values(values, 3)
    assert found.tolist() == [0, 0, -3, 0, 3, -6, 9] and found.dtype == np.float32
    # 8 bits: integers up to 127, and 127 / 127 = 1.
    assert quantize_values(np.array([127.0, 0.4, -63.6]), 8).tolist() == [127, 0, -64]
    # 4 bits: integers up to 7, whatever the sign of the largest.
    assert quantize_values(np.array([-14.0, 5.2]), 4).tolist() == [-14, 6]


def test_one_and_two_uniform_bits_keep_one_magnitude():
    for bits in (1, 2):
        assert quantize_values(FEW, bits).tolist() == [0, 0, 0, 10]
        assert quantize_values(np.array([3.0, 1.0, -2.0]), bits).tolist() == [3, 0, -3]


def test_zero_kmeans_leaves_the_least_squared_error():
    # Two values: 1 and 2 share 1.5, error 0.5; leaving the 1 to zero would cost 1.
    assert quantize_values(FEW, 1, "zero_kmeans").tolist() == [0, 1.5, 1.5, 10]
    # Here zero takes the 0.1, error 0.01; joining it to 2 would cost far more.
    small = np.array([0.1, 2.0, 10.0])
    assert quantize_values(small, 1, "zero_kmeans").tolist() == [0, 2, 10]
    assert quantize_values(FEW, 2, "zero_kmeans").tolist() == FEW.tolist()


def test_values_on_a_grid_are_whole_multiples_of_one_scale():
    value = np.random.default_rng(0).normal(size=400).astype(np.float32)
    found = quantize_values(value, 3, "zero_kmeans", grid=7)
    values = np.unique(found[found != 0]).astype(np.float64)
    assert 0 < values.size <= 8
    scales = [np.abs(values).max() / code for code in range(1, 8)]
    assert min(np.abs(values / s - np.rint(values / s)).max() for s in scales) < 1e-5
    assert np.array_equal(quantize_values(value, 4, grid=7), quantize_values(value, 4))
    with pytest.raises(ValueError, match="Uniform values of 5 bits are integers up to 15"):
        quantize_values(value, 5, grid=7)


@both_ways
def test_32_bits_and_empty_or_zero_arrays_come_back_equal(how):
    value = np.array([0.1, -0.2, 0.3], np.float32)
    copy = quantize_values(value, 32, how)
    assert np.array_equal(copy, value) and copy is not value
    for nothing in (np.zeros((2, 3), np.float32), np.zeros((0, 3), np.float32)):
        assert np.array_equal(quantize_values(nothing, 2, how), nothing)
    assert quantize_values(np.array([5.0], np.float16), 1, how).dtype == np.float16


@both_ways
def test_many_bits_leave_next_to_no_error(how):
    value = np.random.default_rng(1).normal(size=600).astype(np.float32)
    for bits in (9, 12):
        found = quantize_values(value, bits, how)
        assert distinct(found) <= 2**bits
        assert np.abs(found - value).max() <= np.abs(value).max() / (2 ** (bits - 1) - 1) / 1.9


# --- values, always -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(arrays, some_bits)
def test_uniform_values_are_few_near_and_final(value, bits):
    found = quantize_values(value, bits)
    assert distinct(found) <= 2**bits and not np.any(found[value == 0])
    assert np.all(found * value >= 0)
    scale = np.abs(value).max() / max(2 ** (bits - 1) - 1, 1)
    assert np.all(np.abs(found.astype(np.float64) - value) <= scale * 0.5000001)
    again = quantize_values(found, bits)
    assert again.tobytes() == found.tobytes()


@settings(max_examples=60, deadline=None)
@given(npst.arrays(np.float32, st.integers(1, 30), elements=numbers), st.integers(1, 16))
def test_uniform_values_are_final_at_any_number_of_bits(value, bits):
    found = quantize_values(value, bits)
    assert quantize_values(found, bits).tobytes() == found.tobytes()


@settings(max_examples=8, deadline=None)
@given(arrays, some_bits)
def test_zero_kmeans_is_few_final_and_never_worse_than_uniform(value, bits):
    found = quantize_values(value, bits, "zero_kmeans")
    assert distinct(found) <= 2**bits and not np.any(found[value == 0])
    again = quantize_values(found, bits, "zero_kmeans")
    assert again.tobytes() == found.tobytes()
    rival = squared_error(quantize_values(value, bits), value)
    assert squared_error(found, value) <= rival * (1 + 1e-5) + 1e-12


# --- models -------------------------------------------------------------------------------------


@both_ways
def test_a_plain_model_gets_few_values_in_each_kernel_and_nothing_else_changes(how):
    model = network()
    before = weights(model)
    small = quantize_after_training(model, 3, how)
    after = weights(small)
    assert list(stored_kernels(small)) == [path for path in after if is_kernel(path)]
    for path, value in zip(after, before.values(), strict=True):
        if is_kernel(path):
            assert 1 < distinct(after[path]) <= 8
            assert np.array_equal(after[path], quantize_values(value, 3, how))
        else:
            assert np.array_equal(after[path], value)
    assert all(np.array_equal(value, before[path]) for path, value in weights(model).items())
    assert type(small) is type(model) and small is not model


def test_32_bits_copy_a_model():
    model = two_layers()
    small = compress(model, ATMC(ratio=0.2))
    for given_model in (model, small):
        copy = quantize_after_training(given_model, 32)
        assert type(copy) is type(given_model) and copy is not given_model
        for mine, other in zip(copy.get_weights(), given_model.get_weights(), strict=True):
            assert np.array_equal(mine, other)


METHODS = {
    "atmc": lambda: ATMC(ratio=0.2),
    "al0": lambda: "al0",
    "ap": lambda: AP(ratio=0.2),
    "nap": lambda: "nap",
    "alr": lambda: ALR(ratio=0.8),
}


def made_by(name):
    method = METHODS[name]()
    arguments = {"ratio": 0.2} if isinstance(method, str) else {}
    small = compress(two_layers(), method, **arguments)
    if name == "atmc":  # as training would leave them, with something in U and C
        rng = np.random.default_rng(0)
        for kernel in small.kernels:
            for factor in kernel.factors:
                shape = factor.variable.shape
                factor.variable.assign(rng.normal(size=shape) * (rng.random(shape) < 0.08))
    small.finalize()
    return small


@both_ways
@pytest.mark.parametrize("name", METHODS)
def test_each_factor_of_a_compressed_model_is_quantised_by_itself(name, how, tmp_path):
    small = made_by(name)
    before = stored_kernels(small)
    few = quantize_after_training(small, 4, how)
    assert type(few.method) is type(small.method) and few.bits == 4 and small.bits == 32
    assert all(np.array_equal(v, before[k]) for k, v in stored_kernels(small).items())
    found = stored_kernels(few)
    for key, value in before.items():
        uniform = quantize_values(value, 4)
        if how == "uniform":
            assert np.array_equal(found[key], uniform)
        assert squared_error(found[key], value) <= squared_error(uniform, value) * (1 + 1e-5)
    report, old = few.compression_report(), small.compression_report()
    assert [f.name for f in report.factors] == [f.name for f in old.factors]
    assert 1 < report.max_distinct <= 16 < old.max_distinct
    assert report.nonzeros <= old.nonzeros and report.paper_bits < old.paper_bits
    assert [f.distinct for f in report.factors] == [distinct(v) for v in found.values()]
    # Stripping, saving and loading keep the values.
    few.save(tmp_path / "few.keras")
    loaded = keras.saving.load_model(tmp_path / "few.keras")
    x = np.random.default_rng(1).random((4, 8, 8, 1), np.float32)
    expected = few(x, training=False).numpy()
    assert np.array_equal(loaded(x, training=False).numpy(), expected)
    assert loaded.compression_report().to_dict() == report.to_dict()
    assert np.allclose(strip_compression(few)(x).numpy(), expected, atol=1e-4)
    assert all(np.array_equal(v, found[k]) for k, v in stored_kernels(few).items())


def test_state_of_the_constraints_is_carried_over():
    small = made_by("alr")
    # Training changes the singular values; the ranks chosen at the start hold all the same.
    for kernel in small.kernels:
        for position, factor in enumerate(kernel.factors):
            factor.variable.assign(factor.variable * (1 + 40 * (position + len(kernel.name)) % 7))
    small.plan(30)
    few = quantize_after_training(small, 5)
    rank = [next(c for c in m.constraints if hasattr(c, "ranks")) for m in (small, few)]
    assert rank[0].ranks == rank[1].ranks
    assert few.horizon == 30 and few.step == small.step


def test_a_model_trained_with_codebooks_can_be_quantised_further_but_not_back():
    dense = keras.Sequential([keras.Input((9,)), layers.Dense(8, name="last")])
    on_grid = compress(dense, ATMC(ratio=0.8, bits=4, grid=127, codebook_begin=0))
    fewer = quantize_after_training(on_grid, 2)
    assert fewer.bits == 2 and fewer.compression_report().max_distinct <= 4
    values = stored_kernels(fewer)
    fewer.finalize()  # they hold, whatever grid the training had
    assert all(np.array_equal(v, values[k]) for k, v in stored_kernels(fewer).items())
    same = quantize_after_training(compress(dense, AP(ratio=0.8, bits=4)), 8)
    assert same.bits == 4 and 4 < same.compression_report().max_distinct <= 16


def test_low_rank_can_be_trained_with_codebooks_too():
    dense = keras.Sequential([keras.Input((9,)), layers.Dense(8, name="last")])
    small = compress(dense, ALR(ratio=0.8, bits=2, codebook_begin=1))
    (rank,) = [c for c in small.constraints if hasattr(c, "ranks")]
    ranks = rank.ranks
    small.compile(keras.optimizers.SGD(0.1), keras.losses.MeanSquaredError())
    rng = np.random.default_rng(0)
    small.fit(rng.normal(size=(16, 9)), rng.normal(size=(16, 8)), batch_size=4, verbose=0)
    few = quantize_after_training(small, 2, "zero_kmeans")
    for model in (small, few):  # nothing was left to do afterwards
        assert rank.ranks == ranks and 0 < model.compression_report().max_distinct <= 4
    for mine, other in zip(*(stored_kernels(m).values() for m in (few, small)), strict=True):
        assert np.array_equal(mine, other)


def test_a_method_without_bits_is_quantised_all_the_same():
    class Nothing(Method):
        """A method of a user's own."""

    for method in (Nothing(), DA()):
        few = quantize_after_training(compress(two_layers(), method), 2)
        assert type(few.method) is type(method)
        assert few.compression_report().max_distinct <= 2


def test_what_the_bits_can_hold_is_not_rounded_unless_a_grid_is_asked_for():
    model = two_layers()
    kept = quantize_after_training(model, 16)
    rounded, on_grid = (
        quantize_after_training(model, 16, "uniform"),
        quantize_after_training(model, 16, grid=32767),
    )
    found = (stored_kernels(m).values() for m in (model, kept, rounded, on_grid))
    for value, same, uniform, integers in zip(*found, strict=True):
        assert np.array_equal(same, value) and distinct(value) <= 2**16
        assert not np.array_equal(uniform, value) and np.array_equal(uniform, integers)
    fewer = stored_kernels(quantize_after_training(model, 2)).values()
    assert all(distinct(value) <= 4 for value in fewer)
    before = stored_kernels(model).values()
    assert not all(np.array_equal(a, b) for a, b in zip(fewer, before, strict=True))


def test_shared_and_nested_layers_are_quantised_once():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="twice")], name="inner")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3, name="last")(inner(inner(inputs))))
    few = quantize_after_training(model, 2)
    assert len(stored_kernels(few)) == 2
    assert all(distinct(value) <= 2 for value in stored_kernels(few).values())


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 17, 31, 33, -1, True, 2.0, "8", None])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(ValueError, match=r"1\.\.16, or 32"):
        quantize_after_training(network(), bits)


def test_other_bad_input_is_refused_with_the_reason():
    model = network()
    with pytest.raises(ValueError, match="must be one of"):
        quantize_after_training(model, 8, "kmeans")
    for grid in (0, 40000, 1.5, True):
        with pytest.raises(ValueError, match="`grid` must be None or a whole number"):
            quantize_after_training(model, 8, "zero_kmeans", grid=grid)
    with pytest.raises(ValueError, match="not built"):
        quantize_after_training(keras.Sequential([layers.Dense(3)]), 8)
    with pytest.raises(TypeError, match="must be a Keras model"):
        quantize_after_training(layers.Dense(3), 8)
    with pytest.raises(ValueError, match="no kernel to quantise"):
        quantize_after_training(
            keras.Sequential([keras.Input((3,)), layers.BatchNormalization(name="norm")]), 8
        )
    kernel = model.get_layer("last").kernel
    kernel.assign(np.full(kernel.shape, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"last/kernel' cannot be quantised: .* finite"):
        quantize_after_training(model, 8)


# --- command line -------------------------------------------------------------------------------


def test_the_command_writes_a_quantised_file_and_tells_what_it_did(tmp_path, capsys):
    source, out = tmp_path / "model.keras", tmp_path / "new" / "few.keras"
    model = two_layers()
    model.save(source)
    arguments = ["quantize", str(source), "--bits=3", "--how=zero_kmeans"]
    assert cli.main([*arguments, f"--out={out}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "zero_kmeans, 3 bits" in said and "last/kernel" in said and f"Wrote {out}" in said
    expected = quantize_after_training(model, 3, "zero_kmeans").get_weights()
    for mine, other in zip(keras.saving.load_model(out).get_weights(), expected, strict=True):
        assert np.array_equal(mine, other)
    assert cli.main(["quantize", str(source)]) == 0
    assert (tmp_path / "model-uniform8.keras").is_file()
    made_by("atmc").save(source)
    assert cli.main(["quantize", str(source), f"--out={out}"]) == 0
    assert "last/kernel:U" in capsys.readouterr().out


def test_the_command_refuses_what_it_cannot_do(tmp_path, capsys):
    assert cli.main(["quantize", "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Usage: atmc quantize [MODEL.keras]") and "uniform, zero_kmeans" in said
    source = tmp_path / "model.keras"
    network().save(source)
    for extra, said in (
        (["--bits=17"], "1..16, or 32"),
        (["--how=median"], "uniform"),
        ([f"--out={source}"], "the model itself"),
        (["--out=few.h5"], "must end in .keras"),
        (["--bits=8", "--grid=3"], "Uniform values"),
    ):
        assert cli.main(["quantize", str(source), *extra]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert cli.main(["quantize", str(tmp_path / "absent.keras")]) == 2
    assert "There is no file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
