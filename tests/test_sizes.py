# SPDX-License-Identifier: Apache-2.0
"""Size accounting against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tfmot_atmc.math import entropy_bits, measure, paper_bits


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
    with pytest.raises(ValueError, match="got"):
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


def test_measure_adds_up_layers():
    first = np.array([[0.0, 2.0, 2.0], [2.0, 2.0, 5.0]], np.float32)
    second = np.zeros([4], np.float32)
    size = measure({"a": first, "b": second}, bits=8, dense_weights=20)
    a, b = size.matrices
    assert (a.size, a.nonzeros, a.distinct, a.paper_bits) == (6, 5, 2, 5 + 64)
    assert (b.nonzeros, b.distinct, b.paper_bits, b.entropy_bits) == (0, 0, 0, 0.0)
    assert a.position_bits == pytest.approx(math.log2(6))
    assert a.code_bits == pytest.approx(4 * math.log2(5 / 4) + math.log2(5))
    assert a.codebook_bits == 64
    assert size.nonzeros == 5
    assert size.paper_bits == 69
    assert size.paper_bytes == 9
    assert size.paper_ratio == pytest.approx(69 / 640)
    assert size.entropy_bytes == math.ceil(a.entropy_bits / 8)


def test_table_ends_with_the_totals():
    rows = measure({"a": np.array([1.0, 0.0]), "b": np.array([2.0, 3.0])}).table()
    assert [row["name"] for row in rows] == ["a", "b", "total"]
    assert rows[-1]["size"] == 4
    assert rows[-1]["paper_bits"] == 96
    assert rows[-1]["entropy_bits"] == pytest.approx(sum(r["entropy_bits"] for r in rows[:2]))
    assert measure({}).table() == [{"name": "total"}]


def test_raw_floats_are_chosen_where_a_codebook_does_not_pay():
    values = np.arange(1.0, 101.0, dtype=np.float32)
    matrix = measure({"m": values}, bits=8).matrices[0]
    assert matrix.paper_bits == 3200
    assert matrix.entropy_bits == pytest.approx(3200)
