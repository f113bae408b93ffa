# SPDX-License-Identifier: Apache-2.0
"""Where the weights of a kernel sit, and where random pruning would leave them."""

import itertools
import math

import keras
import numpy as np
import pytest

from tfmot_atmc import (
    compress,
    export,
    export_tflite,
    mask_figure,
    mask_stats,
    models,
    strip_compression,
)
from tfmot_atmc.math import aligned_channels, kernel_stats, random_channels, random_filters


def test_counts_by_filter_and_channel_are_those_worked_out_by_hand():
    kernel = np.zeros((2, 2, 3, 2))
    kernel[0, 0, 0, 0] = kernel[1, 1, 0, 0] = kernel[0, 1, 2, 0] = 1.0
    stats = kernel_stats(kernel, "k")
    np.testing.assert_array_equal(stats.per_filter, [[2, 0], [0, 0], [1, 0]])
    np.testing.assert_array_equal(stats.per_input, [2, 0, 1])
    np.testing.assert_array_equal(stats.per_output, [3, 0])
    assert (stats.kept, stats.size) == (3, 24)
    assert (stats.empty_filters, stats.empty_inputs, stats.empty_outputs) == (4, 1, 1)
    assert "3 of 24 weights; empty are 4 of 6 filters" in str(stats)
    # two groups: outputs 0 and 1 read inputs 0 to 2, outputs 2 and 3 read inputs 3 to 5
    grouped = kernel_stats(np.concatenate([kernel, kernel[..., ::-1]], -1), groups=2)
    np.testing.assert_array_equal(grouped.per_input, [2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(grouped.per_output, [3, 0, 0, 3])
    own = kernel_stats(kernel, depthwise=True)
    np.testing.assert_array_equal(own.per_output, [2, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(own.per_input, [2, 0, 1])
    for bad in (np.ones(3), np.ones((2, 3))):
        with pytest.raises(ValueError, match="Received shape"):
            kernel_stats(bad, groups=2)


def test_random_pruning_is_the_mean_over_all_masks_and_near_the_estimate_of_the_source():
    places = [
        kernel_stats(np.isin(np.arange(8), chosen).reshape(2, 2, 2).astype(float))
        for chosen in itertools.combinations(range(8), 3)
    ]
    for count in range(4):
        mean = np.mean([np.count_nonzero(stats.per_filter == count) for stats in places])
        assert random_filters(places[0], count) == pytest.approx(mean)
    # A layer of 3x3x256x256 with 1 % kept. The source estimates by Stirling's formula that 8.19
    # filters hold three weights and 0.18 four; without the approximation they are fewer.
    mask = np.zeros(589_824)
    mask[:5898] = 1
    stats = kernel_stats(mask.reshape(3, 3, 256, 256))
    for count, printed in ((3, 8.19), (4, 0.183)):
        root = math.sqrt(stats.kept / (2 * math.pi * count * (stats.kept - count)))
        estimate = 65_536 * root * (9 * math.e * 0.01 / count) ** count
        assert estimate == pytest.approx(printed, rel=2e-3)
        binomial = 65_536 * math.comb(9, count) * 0.01**count * 0.99 ** (9 - count)
        assert random_filters(stats, count) == pytest.approx(binomial, rel=5e-3)
        assert binomial < estimate
    # exp(-9 * 0.01), not exp(9 * 0.01) as it is printed
    assert random_filters(stats, 0) / 65_536 == pytest.approx(math.exp(-0.09), rel=1e-3)
    assert sum(random_filters(stats, count) for count in range(10)) == pytest.approx(65_536)


def test_a_model_is_described_as_it_is_deployed():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.DepthwiseConv2D(2, name="each"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="head"),
        ]
    )
    assert [stats.kept for stats in mask_stats(model)] == [72, 16, 108]
    small = compress(model, "random_subnetwork", ratio=0.25)
    found = mask_stats(small)
    assert [stats.kept for stats in found] == [
        np.count_nonzero(kernel.compose()) for kernel in small.kernels
    ]
    assert sum(stats.kept for stats in found) == 49
    assert [stats.name for stats in found] == [kernel.name for kernel in small.kernels]
    assert found[1].per_output.shape == (4,)


def test_channels_by_chance_and_empty_ones_that_meet_are_those_worked_out_by_hand():
    first, second = np.zeros((1, 1, 2, 4)), np.zeros((3, 3, 4, 5))
    first[0, 0, 0, 1] = 1.0  # outputs 0, 2 and 3 are empty
    second[0, 0, 1, 0] = second[1, 1, 2, 0] = second[2, 2, 2, 3] = 1.0  # inputs 0 and 3 are
    one, two = kernel_stats(first, "one"), kernel_stats(second, "two")
    assert aligned_channels(one, two) == (2, 3 * 2 / 4)
    with pytest.raises(ValueError, match="'two' has 5 outputs and 'one' 2 inputs"):
        aligned_channels(two, one)
    # One weight of 8: the fullest of the four outputs has it, whichever that is.
    np.testing.assert_array_equal(random_channels(one, "outputs"), [1, 0, 0, 0])
    curve = random_channels(two, "inputs")
    assert curve.sum() == pytest.approx(3) and (np.diff(curve) <= 0).all()
    with pytest.raises(ValueError, match="`axis`"):
        random_channels(one, "rows")


def test_one_call_draws_channels_and_masks_of_two_kernels(tmp_path):
    model = compress(models.get("small_cnn"), "random_subnetwork", ratio=0.05)
    figure = mask_figure(model)
    channels, reads, mask = figure.axes
    kept = {stats.name: stats for stats in mask_stats(model)}
    name = channels.get_title().removeprefix("outputs of ")
    np.testing.assert_array_equal(channels.lines[0].get_ydata(), -np.sort(-kept[name].per_output))
    shown = np.asarray(mask.images[0].get_array())
    assert np.count_nonzero(~shown) == kept[name].kept and shown.size == kept[name].size
    assert reads.get_title().startswith("inputs of ")
    figure.savefig(tmp_path / "masks.png")
    assert (tmp_path / "masks.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="Received 'nothing'"):
        mask_figure(model, ("nothing", name))


def test_an_archive_stores_binary_weights_in_their_mask_and_a_bit_each(tmp_path):
    model = compress(models.get("small_cnn"), "random_subnetwork", ratio=0.05)
    kernels = mask_stats(model)
    places = sum(math.log2(math.comb(stats.size, stats.kept)) for stats in kernels) / 8
    signs = sum(stats.kept for stats in kernels) / 8
    export_tflite(strip_compression(model), tmp_path / "a.tflite", values="int8")
    report = export.pack_archive(tmp_path / "a.tflite", tmp_path / "a.atmc")
    assert report.tensors == len(kernels) == 4
    # Layers whose weights are nearly all kept are stored whole, so parts cannot be told apart.
    assert report.position_bytes + report.code_bytes < 1.02 * (places + signs) + 16
    assert report.codebook_bytes < 8
