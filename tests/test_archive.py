# SPDX-License-Identifier: Apache-2.0
import base64
import hashlib
import itertools
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib

import exporting
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfmot_atmc import models
from tfmot_atmc.export.archive import entropy, unpacking
from tfmot_atmc.export.archive import packing as archive
from tfmot_atmc.export.tflite import flatbuffer, report, sparse

_KINDS = {
    np.float32: schema.TensorType.FLOAT32,
    np.float16: schema.TensorType.FLOAT16,
    np.int8: schema.TensorType.INT8,
    np.int32: schema.TensorType.INT32,
}
no_deadline = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def tflite(*constants, layouts=None):
    """A file with these constants, sparse where there is a layout (None: dense)."""
    model, subgraph = schema.ModelT(), schema.SubGraphT()
    model.version, model.operatorCodes = 3, []
    model.subgraphs, model.buffers = [subgraph], [schema.BufferT()]
    subgraph.tensors, subgraph.operators = [], []
    layouts = layouts or [sparse.find_layout(array) for array in constants]
    for array, layout in zip(constants, layouts, strict=True):
        kind = _KINDS[array.dtype.type]
        tensor = subgraph.tensors[flatbuffer.add_tensor(subgraph, array.shape, kind)]
        if layout is not None:
            encoding = sparse.encode(array, layout)
            tensor.sparsity = flatbuffer.write_sparsity(encoding)
            array = encoding.values
        tensor.buffer = flatbuffer.add_buffer(model, array)
    return flatbuffer.pack_model(model)


def masked(shape, density, dtype=np.float32, seed=0, distinct=15):
    rng = np.random.default_rng(seed)
    book = rng.permutation(np.r_[-60:0, 1:61])[:distinct]
    values = rng.choice(book, shape).astype(dtype)
    return (values * (rng.random(shape) < density)).astype(dtype)


def repaired(data):
    crc = zlib.crc32(data[12:], zlib.crc32(data[:8]))
    return data[:8] + struct.pack("<I", crc) + data[12:]


def handmade(plan, size=1000, stream=b"", graph_size=None, coding=0, digest=bytes(32)):
    """An archive with the checksum that it should have and any plan at all."""
    size_of_graph = len(plan) if graph_size is None else graph_size
    fields = (b"ATMC", 1, coding, 0, 0, size, size_of_graph, len(plan), digest)
    return repaired(unpacking.HEADER.pack(*fields) + plan + stream)


def numbers(*values):
    return b"".join(map(entropy.number_bytes, values))


def coded(data):
    """How many constants an archive of the file codes."""
    return archive._pack(data, "")[1].tensors


def test_a_whole_number_takes_seven_bits_a_byte():
    assert [numbers(0), numbers(127), numbers(128)] == [b"\x00", b"\x7f", b"\x80\x01"]
    assert unpacking._Reader(numbers(300)).number(300, "") == 300
    with pytest.raises(archive.ArchiveError, match="more than 299"):
        unpacking._Reader(numbers(300)).number(299, "a size")
    with pytest.raises(archive.ArchiveError):
        unpacking._Reader(b"\xff" * 20).number(1 << 62, "a size")


def test_probabilities_are_whole_numbers_known_beforehand():
    assert unpacking.scaled([1, 3, 0]).tolist() == [1864135, 5592405, 1]
    codes = unpacking.alphabet(1, 2, 0)
    assert codes.tolist() == [-1, 1, 2]
    # A quarter at each step.
    assert unpacking.shape_weights(codes, 1 << 14, 0).tolist() == [5592405, 5592405, 1398101]
    shift, weights = unpacking.gap_model(64, 32)
    # Half of the gaps are 0, a quarter 1, and so on.
    assert shift == 0 and weights.size == 512
    assert weights[:4].tolist() == [32768, 16384, 8192, 4096]
    assert unpacking.gap_model(1 << 20, 1)[0] == 16


def test_positions_and_values_weigh_no_more_than_a_tenth_above_their_entropy():
    kernel = np.zeros(430_500, np.int8)
    rng = np.random.default_rng(0)
    kernel[rng.permutation(kernel.size)[:4305]] = np.rint(rng.laplace(0, 20, 4305)).clip(-90, 90)
    kernel = kernel.reshape(861, 500)
    data = tflite(kernel)
    packed, summary = archive._pack(data, "")
    assert summary.tensors == 1 and summary.archive_bytes == len(packed)
    assert len(packed) <= 1.10 * summary.entropy_bound + summary.graph_bytes
    assert 0.98 <= summary.overhead <= 1.02
    parts = (
        summary.graph_bytes,
        summary.position_bytes,
        summary.code_bytes,
        summary.codebook_bytes,
    )
    assert sum(parts) == len(packed) and summary.graph_bytes < 800


def test_dead_rows_and_uneven_density_make_the_positions_cheaper():
    rng = np.random.default_rng(0)
    alive = masked((400, 300), 0.05, np.int8)
    uneven = alive * (rng.random((400, 1)) < 0.25)
    data = tflite(uneven.astype(np.int8))
    summary = archive._pack(data, "")[1]
    assert summary.overhead < 0.9
    assert unpacking.unpack(archive.pack(data)) == data


@no_deadline
@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    dtype=st.sampled_from(list(_KINDS)),
    distinct=st.sampled_from([1, 2, 15, 100]),
    seed=st.integers(0, 1 << 16),
    data=st.data(),
)
def test_every_layout_of_every_array_comes_back_to_the_byte(
    shape, density, dtype, distinct, seed, data
):
    shape = [12 * shape[0], *shape[1:]]
    array = masked(shape, density, dtype, seed, distinct)
    order = tuple(data.draw(st.permutations(range(len(shape)))))
    formats = data.draw(st.tuples(*[st.sampled_from(sparse.LevelFormat)] * len(shape)))
    sparse_layout = any(formats)
    layout = sparse.Layout(order, formats, 0) if sparse_layout else None
    content = tflite(array, layouts=[layout])
    packed = archive.pack(content)
    assert unpacking.unpack(packed, max_bytes=len(content)) == content
    assert len(packed) <= len(content) + unpacking.HEADER.size + 1


@no_deadline
@given(
    size=st.lists(st.integers(1, 3000), min_size=1, max_size=3),
    count=st.integers(1, 400),
    seed=st.integers(0, 1 << 16),
    clustered=st.booleans(),
)
def test_positions_come_back_from_any_array(size, count, seed, clustered):
    rng = np.random.default_rng(seed)
    total = int(np.prod(size, dtype=object))
    top = max(total // 1000, min(total, count)) if clustered else total
    positions = np.unique(rng.integers(0, top, count))
    encoder = entropy.Encoder()
    encoder.positions(entropy.PositionModel(size, positions))
    plan = unpacking._Reader(bytes(encoder.plan))
    decoder = unpacking._Decoder(plan, encoder.stream(), 1 << 20, 1 << 20)
    assert decoder._positions(size, 1 << 20).tolist() == positions.tolist()


@pytest.mark.parametrize("distinct", [1, 2, 16, 300, 5000])
@pytest.mark.parametrize("kind", ["f4", "f2", "i1", "i4", "u1"])
def test_values_come_back_whatever_their_type(kind, distinct):
    rng = np.random.default_rng(0)
    width = np.dtype(kind).itemsize
    book = rng.integers(0, 256, (distinct, width)).astype(np.uint8)
    rows = book[rng.integers(0, distinct, 6000)]
    model = entropy.ValueModel(rows, np.dtype(kind).kind)
    encoder = entropy.Encoder()
    encoder.values(model)
    plan = unpacking._Reader(bytes(encoder.plan))
    decoder = unpacking._Decoder(plan, encoder.stream(), 1 << 20, 1 << 20)
    np.testing.assert_array_equal(decoder._values(6000, width), rows)
    assert plan.position == len(encoder.plan)
    if width > 1 and distinct <= 300:
        assert model.kind == unpacking.CODEBOOK
    # No worse than the values as they are, but for the description.
    assert model.bits <= 8 * rows.size + 400


def test_codes_are_modelled_by_the_cheapest_shape():
    codes = unpacking.alphabet(100, 100, 0)
    sizes = np.abs(codes)
    laplace, bell = np.exp(-sizes / 12.0), np.exp(-(sizes**2) / 800.0)
    hollow = bell * (sizes > 20)
    for density, limit in ((laplace, 40), (bell, 40), (np.ones(200), 40), (hollow, 1000)):
        counts = np.rint(density * 1e5 / density.sum())
        model = entropy.CodeModel(codes, counts)
        used = counts[counts > 0]
        best = float(used @ np.log2(used.sum() / used))
        # A shape costs a few numbers, a histogram at most a byte for each code.
        assert best <= model.bits <= best * 1.001 + limit + 8 * codes.size * (limit == 1000)


def test_explicit_zeros_in_blocks_are_not_coded_as_values():
    array = masked((60, 8, 50), 0.03, np.int8)
    csr, dense = sparse.LevelFormat.SPARSE_CSR, sparse.LevelFormat.DENSE
    blocked = sparse.Layout((0, 2, 1), (dense, csr, dense), 0)
    single = sparse.Layout((0, 2, 1), (dense, csr, csr), 0)
    sizes = []
    for layout in (blocked, single):
        content = tflite(array, layouts=[layout])
        packed, summary = archive._pack(content, "")
        assert unpacking.unpack(packed) == content and summary.tensors == 1
        sizes.append(summary.position_bytes + summary.code_bytes)
    assert abs(sizes[0] - sizes[1]) <= 40


def test_blocks_that_split_a_dimension_are_restored():
    array = np.zeros((32, 64), np.float32)
    rng = np.random.default_rng(0)
    for row, column in zip(rng.integers(0, 32, 60), rng.integers(0, 16, 60), strict=True):
        array[row, 4 * column : 4 * column + 4] = rng.choice([0.5, 1.5], 4)
    split = array.reshape(32, 16, 4)
    csr, dense = sparse.LevelFormat.SPARSE_CSR, sparse.LevelFormat.DENSE
    content = tflite(split, layouts=[sparse.Layout((0, 1, 2), (dense, csr, dense), 0)])
    model = flatbuffer.read_model(content)
    tensor = model.subgraphs[0].tensors[0]
    tensor.shape = np.array([32, 64], np.int32)
    tensor.sparsity.blockMap = np.array([1], np.int32)
    content = flatbuffer.pack_model(model)
    stored = flatbuffer.read_constant(model, tensor).encoding
    np.testing.assert_array_equal(sparse.decode(stored), array)
    packed, summary = archive._pack(content, "")
    assert summary.tensors == 1 and unpacking.unpack(packed) == content


@pytest.mark.parametrize("damage", ["unordered", "twice", "segments", "wide", "shape"])
def test_a_foreign_file_that_stores_zeros_its_own_way_is_packed_as_it_is(damage):
    content = tflite(masked((40, 50), 0.1))
    model = flatbuffer.read_model(content)
    tensor = model.subgraphs[0].tensors[0]
    level = tensor.sparsity.dimMetadata[1]
    indices = level.arrayIndices.values = np.array(level.arrayIndices.values)
    if damage == "unordered":
        indices[:2] = indices[1::-1]
    elif damage == "twice":
        indices[1] = indices[0]
    elif damage == "segments":
        level.arraySegments.values = np.array(level.arraySegments.values)[::-1].copy()
    elif damage == "wide":
        level.arrayIndicesType = schema.SparseIndexVector.Int32Vector
        wide = schema.Int32VectorT()
        wide.values = np.asarray(level.arrayIndices.values, np.int32)
        level.arrayIndices = wide
    else:
        tensor.shape = np.array([-40, -50], np.int32)
    content = flatbuffer.pack_model(model)
    assert unpacking.unpack(archive.pack(content)) == content
    # Wider indices than needed are regular all the same.
    assert coded(content) == (1 if damage == "wide" else 0)


def test_dense_codebooks_are_coded_and_noise_is_left_to_the_graph():
    rng = np.random.default_rng(0)
    few = rng.choice(rng.normal(size=7).astype(np.float32), (100, 90))
    assert coded(tflite(few, layouts=[None])) == 1
    assert len(archive.pack(tflite(few, layouts=[None]))) < 9000 * np.log2(7) / 8 * 1.02 + 400
    assert coded(tflite(np.ones((100, 90), np.float32), layouts=[None])) == 0
    noise = rng.integers(-128, 128, (50, 60)).astype(np.int8)
    assert len(archive.pack(tflite(noise, layouts=[None]))) < noise.size + 400


@pytest.mark.parametrize("grid", [None, 2.0**-9])
def test_exported_models_come_back_and_report_what_they_weigh(tmp_path, grid):
    path, packed, back = (tmp_path / name for name in ("m.tflite", "m.atmc", "b.tflite"))
    exporting.quick_export(exporting.prune(models.lenet(), 0.05, grid=grid), path)
    summary = archive.pack_archive(path, packed)
    archive.unpack_archive(packed, back)
    assert back.read_bytes() == path.read_bytes()
    assert summary.bytes == path.stat().st_size and summary.archive_bytes == packed.stat().st_size
    assert summary.archive_bytes <= 1.10 * summary.entropy_bound + summary.graph_bytes
    assert summary.ratio > 1.1 and summary.to_dict()["ratio"] == summary.ratio
    lines = str(summary).splitlines()
    assert lines[2].split() == ["part", "bytes", "share"] and lines[-1].split()[0] == "total"


def test_the_device_needs_one_file_and_nothing_of_the_package(tmp_path):
    content = tflite(masked((40, 50), 0.1), masked((64, 30), 0.05, np.int8))
    (tmp_path / "model.atmc").write_bytes(archive.pack(content))
    script = shutil.copy(unpacking.__file__, tmp_path / "unpacking.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    names = ["model.atmc", "model.tflite"]
    code = (
        "import sys, unpacking; unpacking.main(sys.argv[1:]);"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'tfmot_atmc')])"
    )
    for start in ([str(script)], ["-c", code]):
        (tmp_path / "model.tflite").unlink(missing_ok=True)
        command = [sys.executable, *start, *names]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert (tmp_path / "model.tflite").read_bytes() == content
    assert done.stdout.strip() == "[]"
    (tmp_path / "model.atmc").write_bytes(b"ATMC")
    failed = subprocess.run(
        command[:1] + [str(script), *names], cwd=tmp_path, capture_output=True, text=True
    )
    assert failed.returncode == 1 and "Not a transfer archive" in failed.stderr
    assert (tmp_path / "model.tflite").read_bytes() == content


def test_only_archives_need_the_coder_and_say_so_where_it_is_missing():
    code = (
        "import sys; sys.modules['constriction'] = None\n"
        "import tfmot_atmc as atmc\n"
        "print('pack_archive' in dir(atmc.export), callable(atmc.export_tflite))\n"
        "try:\n    atmc.export.pack_archive\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "True True"
    assert 'pip install "tfmot-atmc[archive]"' in done.stdout.splitlines()[1]


def test_an_archive_cut_anywhere_is_refused():
    packed = archive.pack(tflite(masked((20, 30), 0.1)))
    for end in range(len(packed)):
        with pytest.raises(archive.ArchiveError):
            unpacking.unpack(packed[:end])
        if end > 12:
            with pytest.raises(archive.ArchiveError):
                unpacking.unpack(repaired(packed[:end]))
    with pytest.raises(archive.ArchiveError):
        unpacking.unpack(packed + bytes(4))
    with pytest.raises(archive.ArchiveError):
        unpacking.unpack(repaired(packed + bytes(3)))


def test_every_flipped_bit_is_noticed_before_anything_is_decoded(monkeypatch):
    packed = archive.pack(tflite(masked((20, 30), 0.1)))
    monkeypatch.setattr(unpacking, "_expand", None)
    for position, bit in itertools.product(range(len(packed)), (1, 128)):
        damaged = bytearray(packed)
        damaged[position] ^= bit
        with pytest.raises(archive.ArchiveError):
            unpacking.unpack(bytes(damaged))


def test_no_other_file_comes_out_of_an_archive_damaged_under_a_good_checksum():
    content = tflite(masked((20, 30), 0.1))
    packed = archive.pack(content)
    refused = 0
    for position in range(12, len(packed)):
        damaged = bytearray(packed)
        damaged[position] ^= 1 << position % 8
        try:
            # A few bits say nothing, such as the last ones of the coded stream.
            assert unpacking.unpack(repaired(bytes(damaged)), max_bytes=1 << 20) == content
        except archive.ArchiveError:
            refused += 1
    assert refused >= 0.9 * (len(packed) - 12)


HUGE = 1 << 40
HOSTILE = {
    "file": (dict(plan=numbers(0), size=HUGE), {}),
    "graph": (dict(plan=numbers(0), graph_size=HUGE), {}),
    "tensors": (dict(plan=numbers(HUGE)), {}),
    "values": (dict(plan=numbers(1, 0, 0, HUGE)), {}),
    "values in a huge file": (dict(plan=numbers(1, 0, 0, HUGE, 0, 1, 0, 0), size=HUGE), HUGE),
    "levels": (dict(plan=numbers(1, 1, 0, HUGE)), {}),
    "level": (dict(plan=numbers(1, 1, 0, 1, 1, HUGE, 0, HUGE)), {}),
    "level in a huge file": (dict(plan=numbers(1, 1, 0, 1, 1, HUGE, 0, HUGE, 0), size=HUGE), HUGE),
    "classes": (dict(plan=numbers(1, 1, 0, 1, 1, HUGE, 1, HUGE)), {}),
    "segments": (dict(plan=numbers(1, 1, 0, 2, 0, HUGE, 9, 1, 0, 0, 0), size=900), {}),
    "codebook": (dict(plan=numbers(1, 0, 3, 5, 1, 0, 8192, 0)), {}),
    "window": (dict(plan=bytes(20), graph_size=1000, coding=225), {}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_length_is_refused_without_allocating_for_it(name):
    fields, max_bytes = HOSTILE[name]
    data = handmade(**fields)
    tracemalloc.start()
    try:
        with pytest.raises(archive.ArchiveError):
            unpacking.unpack(data, max_bytes=max_bytes or 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_an_archive_of_nothing_coded_is_the_file_itself():
    content = b"anything"
    digest = hashlib.sha256(content).digest()
    good = handmade(numbers(0) + content, size=8, digest=digest)
    assert unpacking.unpack(good, max_bytes=8) == content
    with pytest.raises(archive.ArchiveError, match="max_bytes=7"):
        unpacking.unpack(good, max_bytes=7)
    with pytest.raises(archive.ArchiveError, match="SHA-256"):
        unpacking.unpack(handmade(numbers(0) + content, size=8), max_bytes=8)
    with pytest.raises(archive.ArchiveError, match="format version 2"):
        unpacking.unpack(repaired(good[:4] + b"\x02" + good[5:]))
    with pytest.raises(archive.ArchiveError, match="CRC-32"):
        unpacking.unpack(good[:-1] + b"?")
    with pytest.raises(archive.ArchiveError, match="Not a transfer archive"):
        unpacking.unpack(b"")


def test_files_are_replaced_only_if_asked_and_never_by_half(tmp_path):
    path, packed = tmp_path / "m.tflite", tmp_path / "m.atmc"
    path.write_bytes(tflite(masked((40, 50), 0.1)))
    archive.pack_archive(path, packed)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        archive.pack_archive(path, packed, overwrite=False)
    with pytest.raises(FileExistsError):
        archive.unpack_archive(packed, path, overwrite=False)
    packed.write_bytes(packed.read_bytes()[:-1])
    before = path.read_bytes()
    with pytest.raises(archive.ArchiveError, match="m.atmc: .*transfer it again"):
        archive.unpack_archive(packed, path)
    assert path.read_bytes() == before
    path.write_bytes(b"no model")
    with pytest.raises(archive.ArchiveError, match="Not a .tflite model"):
        archive.pack_archive(path, packed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.atmc", "m.tflite"]


def test_a_solid_block_of_one_value_does_not_spoil_the_coding_of_others():
    solid = np.zeros((300, 400), np.float32)
    solid[50:250, 100:350] = 0.5
    content = tflite(solid, masked((40, 50), 0.1))
    packed, summary = archive._pack(content, "")
    assert unpacking.unpack(packed) == content and summary.tensors == 1
    assert len(packed) < 2500


def test_equal_files_give_equal_archives():
    content = tflite(masked((40, 50), 0.1), masked((40, 50), 0.1, seed=1))
    assert archive.pack(content) == archive.pack(bytearray(content))
    assert archive.pack(content)[:5] == b"ATMC\x01"


def test_a_large_sparse_kernel_takes_little_memory(tmp_path):
    kernel = np.zeros(5_000_000, np.int8)
    rng = np.random.default_rng(0)
    kernel[np.unique(rng.integers(0, kernel.size, 50_000))] = 1
    content = tflite(kernel.reshape(2500, 2000))
    packed = archive.pack(content)
    tracemalloc.start()
    try:
        assert unpacking.unpack(packed) == content
        assert tracemalloc.get_traced_memory()[1] < kernel.size
    finally:
        tracemalloc.stop()


# Made by the first release: float32 with a codebook, int8 with a shape, dense int8, and blocks.
FIRST = base64.b64decode(
    b"QVRNQwEBAAA56i3/kAgAAAAAAABCAwAAAAAAAHcBAAAAAAAAbK58xCevN3WFIf/ZrPkwT2DqnYpmzksA0AJ/KBnuvb"
    b"kAAgBHKBlhVBJsOul/kaus4eKXCmkJTSRtARkw+a8sTyn1kv49F7AnN3nOTJk6dsq23JwZhxdolh4P3eIEEwTRgUKo"
    b"Nnru1QG5FxAdr3QUC5/sb8NhmL+l+VQi88J1ay2T6pcrIUah0LRPx44g3u6giE9o8TKhAD0bk1pcII+B4cJJh/78uo"
    b"4JwpvD4T5JAdda0uykJoulURaMB3g14JDNzRi11YuzD5JReFmp1rCa23u40vnYysRZszxoc3QySpK7KBaNgjywdoH+"
    b"W7NkPzQSUo6kDpX22Htw1woTJjtpS3nqTobi7H/Hjf2hB9H5i6hPxj2lUyE5M4PqCCZS9D5UI8t8ufa71WpgGTQUHl"
    b"t6NSDz2UX+/I5lqcD2NvN8UVtrqCwl8u1gyXyikzCr6uKbNp6kqHNB7zmlxRq2ulhipel0r06IQC5YMHCs5ndWXUdv"
    b"QpAPkvgV/KD23O/aph3enG7K8CjdRvF1wYEswB+vs+lw/43q6EwtyUbD631Y67Hf63v7RsOwuKdr2Xjt8h0ffBJ7xA"
    b"9ERj3d1TwagKsIiOybdJhRTWbUvOOt58tTZGl3OWBxwcEGjhQN8TQE75eCQnZVglJs45buZ+/PMNzaPfzx4MR6LACc"
    b"HvAnLmIKFtZBb/176zubLAlfGKGO6Jpsfq46SvdbAHe/IZGrxLoZJJtVcNO77Fvq08q0MIqCmlW0JjxuvrIKFc1vAm"
    b"eRXmybxy47tT9u47v6i1Bvrb+EPhqJkm9yYIX3Awszscu1lc40KLcRLcZQ4hypmW7rkx9PmntW4Hk1CV4sHSti+Vez"
    b"PVmSR9IK5D5MDyYE7Ya42CMd64kML9QNCt0JMLNip9CPQzRlgRhfPT4v4sxtnVdnekPCfoszQsZGPilrE02Ock1Hqo"
    b"0MS1y08FmOBHylVoJ3TBgPBi90r3sK6ATuip5oHUCY3ip5CQfAcugVWqQ/nB+UOjphM2UjQjimZVWO3Q9pDzNpgDRh"
    b"aX1i++op3ZOfUyYB1zIDFmiWVddIhd/aLLG2ApQ="
)


def test_archives_of_the_first_version_stay_readable():
    content = unpacking.unpack(FIRST)
    assert len(content) == 2192
    constants = report.summarise_tensors(content)
    assert [c.shape for c in constants] == [(40, 30), (30, 24), (20, 16), (10, 12, 4)]
    assert [c.nonzeros for c in constants] == [106, 111, 253, 84]
    assert [c.format for c in constants] == ["1 ~0", "1 ~0", "dense", "0 ~1 2"]
    assert archive.pack(content)[:5] == FIRST[:5]
