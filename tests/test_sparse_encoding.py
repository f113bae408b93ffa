# SPDX-License-Identifier: Apache-2.0
"""Sparse storage of arrays: layouts, exact bytes, round trips, rejection of damaged encodings."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfmot_atmc.export.tflite.grids import exact_int8_grid
from tfmot_atmc.export.tflite.sparse import (
    Layout,
    Level,
    LevelFormat,
    SparseEncoding,
    decode,
    encode,
    find_layout,
    narrowest_index_type,
)

DENSE, CSR = LevelFormat.DENSE, LevelFormat.SPARSE_CSR


def random_sparse(shape, density, seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 100, shape) * rng.choice([-1, 1], shape)
    return (values * (rng.random(shape) < density)).astype(dtype)


@st.composite
def sparse_arrays(draw):
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    density = draw(st.sampled_from([0.0, 0.02, 0.2, 0.6, 1.0]))
    dtype = draw(st.sampled_from([np.float32, np.int8]))
    return random_sparse(shape, density, draw(st.integers(0, 2**16)), dtype)


def test_a_matrix_is_stored_as_in_the_textbook():
    matrix = np.array([[0, 5, 0], [0, 0, 0], [7, 0, 8]], np.float32)
    encoded = encode(matrix, Layout((0, 1), (DENSE, CSR), 0))
    assert encoded.values.tolist() == [5, 7, 8]
    assert encoded.levels[1].segments.tolist() == [0, 1, 1, 3]
    assert encoded.levels[1].indices.tolist() == [1, 0, 2]
    assert (encoded.value_bytes, encoded.index_bytes, encoded.segment_bytes) == (12, 3, 4)
    assert encoded.nbytes == 19
    assert encoded.describe() == "0 ~1"


def test_columns_first_and_a_dense_inner_level_keep_their_meaning():
    matrix = np.array([[0, 5, 0], [0, 6, 0], [0, 0, 0]], np.float32)
    encoded = encode(matrix, Layout((1, 0), (CSR, DENSE), 0))
    assert encoded.levels[0].indices.tolist() == [1]
    assert encoded.values.tolist() == [5, 6, 0]
    np.testing.assert_array_equal(decode(encoded), matrix)


@settings(max_examples=100, deadline=None)
@given(sparse_arrays())
def test_decoding_restores_every_value_and_the_layout_states_the_bytes(array):
    layout = find_layout(array)
    encoded = encode(array, layout)
    restored = decode(encoded)
    np.testing.assert_array_equal(restored, array)
    assert restored.dtype == array.dtype
    tables = layout.nbytes - encoded.nbytes
    dense_levels = layout.formats.count(DENSE)
    assert tables == 16 * dense_levels + 56 * (array.ndim - dense_levels)


@settings(max_examples=8, deadline=None)
@given(sparse_arrays())
def test_no_other_layout_is_smaller(array):
    best = encode(array)
    tables = {DENSE: 16, CSR: 56}
    cost = best.nbytes + sum(tables[level.format] for level in best.levels)
    for order in itertools.permutations(range(array.ndim)):
        for formats in itertools.product(LevelFormat, repeat=array.ndim):
            if CSR in formats:
                other = encode(array, Layout(order, formats, 0))
                np.testing.assert_array_equal(decode(other), array)
                assert cost <= other.nbytes + sum(tables[f] for f in formats)


def test_structured_zeros_are_found():
    filters = np.zeros((32, 3, 3, 16), np.float32)
    filters[[3, 17]] = 1.0
    layout = find_layout(filters)
    assert layout.order[0] == 0
    assert layout.formats == (CSR, DENSE, DENSE, DENSE)
    assert encode(filters, layout).index_bytes == 2


def test_an_all_zero_array_keeps_one_explicit_zero():
    encoded = encode(np.full((4, 5), -0.0, np.float32))
    assert encoded.values.size >= 1
    assert not np.signbit(encoded.values).any()
    np.testing.assert_array_equal(decode(encoded), np.zeros((4, 5)))


def test_float_bits_survive_except_the_sign_of_zero():
    array = np.array([[1e-42, -0.0, 0.0], [np.nan, -np.inf, 3.14]], np.float32)
    restored = decode(encode(array))
    expected = array.copy()
    expected[0, 1] = 0.0
    np.testing.assert_array_equal(restored.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(0, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.int32)],
)
def test_indices_take_the_narrowest_type(largest, dtype):
    assert narrowest_index_type(largest) == dtype


def test_indices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at most"):
        narrowest_index_type(1 << 31)


def test_wide_arrays_count_their_index_bytes():
    array = np.zeros((2, 300), np.int8)
    array[0, 10] = array[1, 20] = 1
    assert encode(array, Layout((0, 1), (DENSE, CSR), 0)).index_bytes == 2
    array[1, 299] = 1
    assert encode(array, Layout((0, 1), (DENSE, CSR), 0)).index_bytes == 6


def test_blocks_written_by_the_converter_are_decoded():
    # A 2 x 4 matrix of 1 x 2 blocks: only the block at row 1, columns 2 and 3 is stored.
    levels = (
        Level(DENSE, 2),
        Level(CSR, 4, np.array([0, 0, 1]), np.array([1])),
        Level(DENSE, 2),
    )
    encoded = SparseEncoding((2, 4), (0, 1, 2), levels, np.array([5, 6], np.float32), (1,))
    np.testing.assert_array_equal(decode(encoded), [[0, 0, 0, 0], [0, 0, 5, 6]])


def damaged(**changes):
    encoded = encode(np.eye(3, dtype=np.float32), Layout((0, 1), (DENSE, CSR), 0))
    csr = encoded.levels[1]
    level = {k: changes.pop(k) for k in ("segments", "indices") if k in changes}
    levels = (encoded.levels[0], dataclasses.replace(csr, **level))
    return dataclasses.replace(encoded, **({"levels": levels} | changes))


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        (damaged(indices=np.array([0, 1, 3])), "outside"),
        (damaged(indices=np.array([0, -1, 2])), "outside"),
        (damaged(segments=np.array([0, 1, 2])), "segments"),
        (damaged(segments=np.array([0, 2, 1, 3])), "segments"),
        (damaged(segments=None), "segments"),
        (damaged(values=np.ones(2, np.float32)), "values"),
        (damaged(order=(0, 0)), "order"),
        (damaged(shape=(3, 3, 3)), "order"),
        (damaged(shape=(4, 3)), "DENSE"),
        (damaged(order=(0, 1, 2), block_map=(1,)), "order"),
    ],
)
def test_encodings_that_contradict_themselves_are_refused(encoding, message):
    with pytest.raises(ValueError, match=message):
        decode(encoding)


@pytest.mark.parametrize("array", [np.float32(1), np.zeros((0, 3), np.float32)])
def test_scalars_and_empty_arrays_are_refused(array):
    with pytest.raises(ValueError, match="rank 1"):
        find_layout(array)
    with pytest.raises(ValueError, match="rank 1"):
        encode(array)


def test_a_layout_of_another_rank_is_refused():
    with pytest.raises(ValueError, match="traverses"):
        encode(np.eye(3), Layout((0,), (CSR,), 0))


@settings(max_examples=100, deadline=None)
@given(
    scale=st.floats(2.0**-20, 8.0, width=32),
    largest=st.integers(1, 127),
    seed=st.integers(0, 2**16),
)
def test_integers_times_one_scale_are_found_exactly(scale, largest, seed):
    integers = np.random.default_rng(seed).integers(-largest, largest + 1, 60)
    integers[0] = largest
    array = integers.astype(np.float32) * np.float32(scale)
    codes, found = exact_int8_grid(array)
    np.testing.assert_array_equal(codes.astype(np.float32) * found, array)
    np.testing.assert_array_equal(codes == 0, array == 0)
    assert np.abs(codes.astype(int)).max() <= 127


@pytest.mark.parametrize(
    "values",
    [[1.0, np.pi], [1.0, 128.0], [0.0, 0.0], [1.0, np.nan], [1e-44, 2e-44], [1.0, 1.0 + 2**-23]],
)
def test_values_off_any_grid_are_refused(values):
    assert exact_int8_grid(np.array(values, np.float32)) is None
