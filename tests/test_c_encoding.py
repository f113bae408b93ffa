# SPDX-License-Identifier: Apache-2.0
"""The parts of the C exporter: encoded rows, fixed point, and the plan of the memory."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfmot_atmc.export.c import fixed_point
from tfmot_atmc.export.c.encoding import Form, decode_rows, encode_rows
from tfmot_atmc.export.c.layout import Storage, View, place
from tfmot_atmc.export.c.network import Operation, Tensor
from tfmot_atmc.export.c.reading import read_network
from tfmot_atmc.export.c.reference import run_network
from tfmot_atmc.export.c.scales import weighted_fields


@st.composite
def kernels(draw):
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 40)))
    elements = st.sampled_from([0, 0, 0, 0, 0, 1, -1, 127, -128, 5])
    return draw(hnp.arrays(np.int8, shape, elements=elements))


@settings(max_examples=60, deadline=None)
@given(kernels(), st.booleans(), st.booleans())
def test_rows_come_back_from_every_layout(rows, fast, shared):
    for array in (rows, rows.astype(np.float32) / 3):
        stored = encode_rows(array, fast=fast, shared=shared)
        assert stored.nbytes <= encode_rows(array, fast=fast).nbytes
        np.testing.assert_array_equal(decode_rows(stored), array)
        assert stored.nonzeros == np.count_nonzero(rows)
        assert stored.nbytes <= array.nbytes
        assert not (fast and stored.form == Form.BITS)


def test_a_small_stream_by_hand():
    rows = np.array([[0, 0, 5, 0], [0, 0, 0, -1]], np.int8)
    # Gap 2 and the value 5, gap 4 and the value -1, and a last gap that leads out: none is left.
    whole = encode_rows(rows, fast=True)
    assert whole.form == Form.BYTES and whole.stream == bytes([2, 5, 4, 255, 0])
    bits = encode_rows(np.repeat(rows, 40, axis=0))
    assert bits.form == Form.BITS and bits.value_bits == 1
    assert bits.table.tolist() == [-1, 5]
    # 40 rows of one kind follow 40 of the other, each with one weight in four.
    assert len(bits.stream) < 80


def test_a_gap_and_a_code_share_a_byte_where_there_are_few_values():
    rows = np.zeros((2, 300), np.int8)
    rows[0, 3], rows[1, 0], rows[1, 9], rows[1, 10:14] = -127, 127, -127, 127
    stored = encode_rows(rows, fast=True, shared=True)
    # 127 zeros and no weight are 127; the code is in the high bit: 0 for -127, 1 for 127.
    gaps = [3, 127, 127, 42 + 128, 8, *[0 + 128] * 4, 127, 127, 32]
    assert stored.form == Form.SHARED and list(stored.stream) == gaps
    assert stored.table.tolist() == [-127, 127] and (stored.gap_bits, stored.value_bits) == (7, 1)
    many = np.arange(1, 41, dtype=np.int8)[None] * (np.arange(40) % 4 == 0)
    assert encode_rows(np.repeat(many, 9, 0), fast=True, shared=True).form == Form.SHARED
    assert encode_rows(np.arange(-60, 60, 2, dtype=np.int8)[None], shared=True).value_bits == 8


def test_long_gaps_are_written_in_pieces_and_dense_rows_without_gaps():
    sparse = np.zeros((1, 1000), np.int8)
    sparse[0, 700] = 3
    stored = encode_rows(sparse, fast=True)
    # 700 zeros are 255, 255 and 190; the 299 after the weight are 255 and 44.
    assert stored.stream == bytes([255, 255, 190, 3, 255, 44])
    dense = np.arange(1, 101, dtype=np.int8).reshape(4, 25)
    stored = encode_rows(dense)
    assert stored.nbytes <= 100 and stored.gap_bits == 0
    np.testing.assert_array_equal(decode_rows(stored), dense)


def test_all_zero_kernels_take_few_bytes():
    stored = encode_rows(np.zeros((500, 4000), np.int8))
    assert stored.nonzeros == 0 and stored.nbytes < 100
    assert not decode_rows(encode_rows(np.zeros((3, 7), np.float32))).any()


def test_floats_of_more_than_256_values_are_stored_as_they_are():
    rows = np.zeros((4, 400), np.float32)
    rows[:, ::2] = np.random.default_rng(0).normal(size=(4, 200)).astype(np.float32)
    stored = encode_rows(rows)
    assert stored.value_bits == 0 and stored.table.size == 800
    np.testing.assert_array_equal(decode_rows(stored), rows)


def test_multipliers_by_hand():
    assert fixed_point.quantize_multiplier(0.5) == (1 << 30, 0)
    assert fixed_point.quantize_multiplier(3.0) == (3 << 29, 2)
    assert fixed_point.quantize_multiplier(0.0) == (0, 0)
    assert fixed_point.quantize_multiplier(2.0**-40) == (0, 0)
    # Rounded twice: 5 / 4 becomes 3 / 2 and then 2. The first halves go up, the second away from 0.
    factor = fixed_point.quantize_multiplier(0.25)
    assert fixed_point.multiply(np.array([5, 6, -5, -6]), *factor).tolist() == [2, 2, -1, -2]


@settings(max_examples=100, deadline=None)
@given(st.integers(-(1 << 20), 1 << 20), st.floats(1e-5, 4.0))
def test_products_are_those_of_real_numbers_but_for_two_roundings(value, factor):
    exact = value * factor
    found = int(fixed_point.multiply(value, *fixed_point.quantize_multiplier(factor)))
    assert abs(found - exact) <= 1.0 + abs(exact) * 2.0**-29


def test_tables_of_functions_are_near_the_functions():
    codes = np.arange(-128, 128)
    for scale, zero in itertools.product((0.01, 0.05, 0.2), (-128, 0, 37)):
        table = fixed_point.sigmoid_table(scale, zero)
        real = 256.0 / (1.0 + np.exp(-(codes - zero) * scale)) - 128.0
        assert np.abs(table - np.clip(real, -128, 127)).max() <= 1.0
        assert (np.diff(table) >= 0).all()
    logits = np.random.default_rng(0).integers(-128, 128, (50, 7))
    powers = np.exp(logits * 0.1 - (logits * 0.1).max(1, keepdims=True))
    real = powers / powers.sum(1, keepdims=True) * 256.0 - 128.0
    found = fixed_point.softmax(logits, 0.1, 1.0)
    assert np.abs(found - np.clip(real, -128, 127)).max() <= 1.0


def test_ranges_of_activations():
    assert fixed_point.clamp_range("none", 0.1, 3) == (-128, 127)
    assert fixed_point.clamp_range("relu", 0.1, 3) == (3, 127)
    assert fixed_point.clamp_range("relu6", 0.1, -50) == (-50, 10)
    assert fixed_point.clamp_range("relu_n1_to_1", 0.1, 0) == (-10, 10)


@st.composite
def lifetimes(draw):
    spans = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.integers(1, 50)),
                          min_size=1, max_size=9))  # fmt: skip
    found = []
    for first, length, size in spans:
        storage = Storage(size, 1, 1)
        storage.first, storage.last = first, first + length
        found.append(storage)
    return found


@settings(max_examples=50, deadline=None)
@given(lifetimes(), st.sampled_from([1, 4]))
def test_memory_in_use_at_once_does_not_overlap(storages, itemsize):
    total = place(storages, itemsize)
    step = 4 // itemsize
    for a, b in itertools.combinations(storages, 2):
        if a.first <= b.last and b.first <= a.last:
            assert a.offset + a.size <= b.offset or b.offset + b.size <= a.offset
    assert all(s.offset % step == 0 and s.offset + s.size <= total for s in storages)
    busiest = max(sum(s.size for s in storages if s.first <= t <= s.last) for t in range(15))
    assert busiest <= total <= sum(-(-s.size // step) * step for s in storages)


def test_rows_of_padded_planes_share_their_borders():
    storage = Storage(2, 3, 4)
    storage.pad(1, 1, 1, 1)
    view = View(storage, 3, 4, 2)
    # One column and one row between neighbours, not two.
    assert (storage.row, storage.plane) == (5, 20)
    assert storage.origin == view.start == 6
    assert storage.size == 6 + 2 * 20
    assert view.offsets()[0, 0].tolist() == [0, 20] and view.offsets()[2, 3, 1] == 33
    assert View(storage, 5, 6, 2, top=-1, left=-1).start == 0


def test_factors_are_products_of_doubles_also_for_dense_layers():
    def tensor(scale, shape, data=None):
        kind = np.dtype(np.int8)
        return Tensor(shape, kind, np.array([scale], np.float32), -128, data)

    # Rounded to float32 first, this product gives another multiplier; TFLM does not round it.
    kernel = np.ones((1, 2), np.int8)
    scales = np.float32(0.0123), np.float32(0.0457)
    operation = Operation(
        "dense",
        [tensor(scales[0], (1, 2)), tensor(scales[1], (1, 2), kernel)],
        tensor(0.1, (1, 1)),
    )
    exact = float(scales[0]) * float(scales[1]) / float(np.float32(0.1))
    rounded = float(scales[0] * scales[1]) / float(np.float32(0.1))
    found = weighted_fields(operation, kernel, np.zeros(1, np.int32))["multiplier"]
    assert found == fixed_point.quantize_multiplier(exact)[0]
    assert found != fixed_point.quantize_multiplier(rounded)[0]


@pytest.mark.parametrize("number", range(3))
def test_outputs_of_tflm_that_were_kept_come_out_again(number):
    kept = np.load(Path(__file__).parent / "golden" / "tflm_vectors.npz")
    network = read_network(kept[f"model_{number}"].tobytes())
    np.testing.assert_array_equal(
        run_network(network, kept[f"inputs_{number}"]), kept[f"outputs_{number}"]
    )
