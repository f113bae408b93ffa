# SPDX-License-Identifier: Apache-2.0
"""Size accounting against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from tfmot_atmc.math import entropy_bits, paper_bits


@pytest.mark.parametrize(
    ("nonzeros", "distinct", "want"),
    [
        (1000, 201, 14_432),
        (200, 200, 6_400),
        (256, 256, 8_192),
        (257, 256, 10_248),
        (500, 1, 32),
        (300, 129, 6_528),
        (0, 0, 0),
        (1, 1, 32),
    ],
)
def test_paper_bits_match_the_worked_examples(nonzeros, distinct, want):
    assert paper_bits(nonzeros, distinct, 8) == want
    assert paper_bits(nonzeros, distinct, 32) == 32 * nonzeros


def test_paper_bits_of_an_unquantised_resnet34_equal_its_ratio():
    k = 212_650
    assert paper_bits(k, k, 32) == 6_804_800
    assert paper_bits(k, k, 32) / (32 * 21_265_088) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("counts", [(-1, 0, 8), (3, 4, 8), (3, 0, 8), (3, 1, 0), (3, 1, 33)])
def test_paper_bits_refuse_impossible_counts(counts):
    with pytest.raises(ValueError, match="Received"):
        paper_bits(*counts)


def test_entropy_bits_match_hand_computation():
    assert entropy_bits(10, 0, []) == 0.0
    assert entropy_bits(10, 10, [10]) == pytest.approx(0.0, abs=1e-9)
    # 6 ways to place two of four, one bit for each of the two codes.
    assert entropy_bits(4, 2, [1, 1]) == pytest.approx(math.log2(6) + 2)
    want = math.log2(math.comb(100, 8)) + 8 * 1.75
    assert entropy_bits(100, 8, [4, 2, 1, 1, 0]) == pytest.approx(want)
    with pytest.raises(ValueError, match="sum"):
        entropy_bits(4, 2, [1])
    with pytest.raises(ValueError, match="nonzeros"):
        entropy_bits(1, 2, [2])


def test_sizes_of_small_matrices_are_those_worked_out_by_hand():
    # [[0, 2, 2], [2, 2, 5]]: five nonzeros, four of one value, one of another.
    assert paper_bits(5, 2, 8) == 5 + 64
    codes = 4 * math.log2(5 / 4) + math.log2(5)
    assert entropy_bits(6, 5, [4, 1]) == pytest.approx(math.log2(6) + codes)
    # Nothing is stored of a matrix of zeros.
    assert (paper_bits(0, 0, 8), entropy_bits(4, 0, [])) == (0, 0.0)
    assert paper_bits(1, 1, 32) + paper_bits(2, 2, 32) == 96


def test_raw_floats_are_chosen_where_a_codebook_does_not_pay():
    assert paper_bits(100, 100, 8) == 3200
