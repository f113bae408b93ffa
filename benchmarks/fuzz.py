# SPDX-License-Identifier: Apache-2.0
r"""Feeds damaged files to everything that reads files, and counts what comes of it.

Four targets: `archive` unpacks transfer archives, `pack` packs .tflite files into them, `inspect`
reads .tflite files, `rewrite` reads them, stores their weights sparsely and writes them again.
Mutants come from small archives and models by bit flips, splices, truncation and extreme numbers;
half of the archives get their checksum repaired, so that the code behind it is reached. Each target
runs in a child process that may take `--memory_mb` more than it starts with, and each input has
`--seconds`. An input may be accepted or refused with a ValueError; everything else is a finding,
which `--targets` with `--only` reproduces.

    python benchmarks/fuzz.py --inputs 100000 --out fuzz.json
"""

from __future__ import annotations

import json
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import app, flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

FLAGS = flags.FLAGS
TARGETS = ("archive", "pack", "inspect", "rewrite")
flags.DEFINE_list("targets", list(TARGETS), "What to feed.")
flags.DEFINE_integer("inputs", 100_000, "Inputs for each target.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of the mutants.")
flags.DEFINE_integer("memory_mb", 256, "Memory that a target may take beyond its start.")
flags.DEFINE_float("seconds", 5.0, "Time that an input may take.")
flags.DEFINE_string("out", None, "JSON file to write the counts to.")
flags.DEFINE_integer("only", None, "Run this input alone and let its error out.")
flags.DEFINE_string("child", None, "For the program's own use: the target to run.")
flags.DEFINE_integer("start", 0, "For the program's own use: the first input.")
flags.DEFINE_string("progress", None, "For the program's own use: where to count inputs.")

_MAX_BYTES = 1 << 20
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_KEPT_FINDINGS = 20
_MAX_RESTARTS = 20


class _TookTooLong(BaseException):
    """An input's time is over; not an Exception, so that nothing takes it for one of its own."""


def small_models() -> list[bytes]:
    """A few small .tflite files: dense, sparse float32 and sparse int8."""
    from ai_edge_litert import schema_py_generated as schema

    from tfmot_atmc.export.tflite import flatbuffer, sparse

    files = []
    for number, dtype in enumerate((np.float32, np.float32, np.int8)):
        rng = np.random.default_rng(number)
        model, subgraph = schema.ModelT(), schema.SubGraphT()
        model.version, model.operatorCodes = 3, []
        model.subgraphs, model.buffers = [subgraph], [schema.BufferT()]
        subgraph.tensors, subgraph.operators = [], []
        source = flatbuffer.add_tensor(subgraph, (1, 30), schema.TensorType.FLOAT32)
        kinds = {np.float32: schema.TensorType.FLOAT32, np.int8: schema.TensorType.INT8}
        kernel = rng.integers(-9, 9, (40, 30)).astype(dtype) * (rng.random((40, 30)) < 0.1)
        weight = flatbuffer.add_tensor(subgraph, kernel.shape, kinds[dtype])
        tensor = subgraph.tensors[weight]
        if number:
            encoding = sparse.encode(kernel.astype(dtype))
            tensor.sparsity = flatbuffer.write_sparsity(encoding)
            tensor.buffer = flatbuffer.add_buffer(model, encoding.values)
        else:
            tensor.buffer = flatbuffer.add_buffer(model, kernel.astype(dtype))
        target = flatbuffer.add_tensor(subgraph, (1, 40), schema.TensorType.FLOAT32)
        dense = schema.BuiltinOperator.FULLY_CONNECTED
        subgraph.operators.append(flatbuffer.add_operator(model, dense, [source, weight], target))
        subgraph.inputs = np.array([source], np.int32)
        subgraph.outputs = np.array([target], np.int32)
        files.append(flatbuffer.pack_model(model))
    return files


def small_archives() -> list[bytes]:
    """Archives of `small_models`, and the same with their graphs not compressed."""
    from tfmot_atmc.export.archive import packing as archive
    from tfmot_atmc.export.archive import unpacking

    files = []
    for model in small_models():
        packed = archive.pack(model)
        files.append(packed)
        fields = list(unpacking.HEADER.unpack_from(packed))
        end = unpacking.HEADER.size + fields[7]
        graph = unpacking._expand(packed[unpacking.HEADER.size : end], fields[2], fields[6])
        fields[2], fields[7] = 0, len(graph)
        files.append(repaired(unpacking.HEADER.pack(*fields) + graph + packed[end:]))
        unpacking.unpack(files[-1])
    return files


def repaired(data: bytes) -> bytes:
    """The archive with the checksum that it should have."""
    crc = zlib.crc32(data[12:], zlib.crc32(data[:8]))
    return data[:8] + struct.pack("<I", crc) + data[12:]


def mutant(corpus: list[bytes], rng: random.Random) -> bytes:
    """One file of the corpus, damaged in up to four ways."""
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data)) if data else 0
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.randrange(256)
        elif kind == 2:
            other = rng.choice(corpus)
            start = rng.randrange(len(other))
            length = rng.randrange(1, 64)
            data[at : at + rng.choice((0, length))] = other[start : start + length]
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            width, code = rng.choice(((4, "<I"), (8, "<Q"), (2, "<H")))
            value = rng.choice((*_EXTREMES, 1 << 40, rng.getrandbits(64))) % (1 << 8 * width)
            at -= at % rng.choice((1, width))
            data[at : at + width] = struct.pack(code, value)
        else:
            # A whole number of the plan, as large as it can be written.
            data[at : at + rng.randrange(2)] = b"\xff" * rng.randrange(1, 9) + b"\x7f"
    return bytes(data)


def consumer(target: str) -> tuple[list[bytes], Callable[[bytes], Any]]:
    """The corpus of a target and what its mutants are fed to."""
    from tfmot_atmc.export.archive import packing as archive
    from tfmot_atmc.export.archive import unpacking
    from tfmot_atmc.export.tflite import flatbuffer, report, rewrite

    def rewritten(data: bytes) -> bytes:
        model = flatbuffer.read_model(data)
        rewrite.sparsify_weights(model, min_sparsity=0.5)
        return flatbuffer.pack_model(model)

    if target == "archive":
        return small_archives(), lambda data: unpacking.unpack(data, max_bytes=_MAX_BYTES)
    feeds = {"pack": archive.pack, "inspect": report.summarise_tensors, "rewrite": rewritten}
    return small_models(), feeds[target]


def _input(corpus: list[bytes], target: str, number: int) -> bytes:
    rng = random.Random(f"{FLAGS.seed} {number}")
    data = mutant(corpus, rng)
    if target == "archive" and number % 2 and len(data) > 12:
        data = repaired(data[:4] + b"\x01" + data[5:] if rng.randrange(2) else data)
    return data


def _stop(*_: Any) -> None:
    raise _TookTooLong()


def run_child() -> dict[str, Any]:
    """Feeds a target and returns the counts."""
    target = FLAGS.child
    corpus, feed = consumer(target)
    for data in corpus:
        feed(data)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limit = used + (FLAGS.memory_mb << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, _stop)
    counts = {"accepted": 0, "refused": 0, "findings": 0}
    findings: list[dict[str, Any]] = []
    slowest = 0.0
    with open(FLAGS.progress, "r+b") as file, mmap.mmap(file.fileno(), 8) as progress:
        for number in range(FLAGS.start, FLAGS.inputs):
            data = _input(corpus, target, number)
            progress[:8] = struct.pack("<q", number)
            begin = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, FLAGS.seconds)
            try:
                feed(data)
                outcome = "accepted"
            except ValueError:
                outcome = "refused"
            except BaseException as error:
                outcome = "findings"
                if len(findings) < _KEPT_FINDINGS:
                    last = traceback.extract_tb(error.__traceback__)[-1]
                    where = f"{os.path.basename(last.filename)}:{last.lineno}"
                    findings.append({"input": number, "error": repr(error)[:200], "where": where})
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            slowest = max(slowest, time.perf_counter() - begin)
            counts[outcome] += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {**counts, "slowest_s": slowest, "peak_rss_mb": peak, "details": findings}


def run_target(target: str, directory: str) -> dict[str, Any]:
    """Runs a target in child processes, going on behind an input that kills one."""
    progress = os.path.join(directory, target)
    start, crashes = 0, []
    total: dict[str, Any] = {"accepted": 0, "refused": 0, "findings": 0, "details": []}
    begin = time.perf_counter()
    while start < FLAGS.inputs and len(crashes) <= _MAX_RESTARTS:
        with open(progress, "wb") as file:
            file.write(struct.pack("<q", -1))
        options = {
            "child": target,
            "start": start,
            "progress": progress,
            **{name: FLAGS[name].value for name in ("inputs", "seed", "memory_mb", "seconds")},
        }
        command = [sys.executable, __file__, *(f"--{k}={v}" for k, v in options.items())]
        outcome = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if outcome.returncode == 0:
            result = json.loads(outcome.stdout.splitlines()[-1])
            for key in ("accepted", "refused", "findings", "details"):
                total[key] += result.pop(key)
            total.update(result)
            break
        with open(progress, "rb") as file:
            last = struct.unpack("<q", file.read(8))[0]
        if last < 0:
            raise RuntimeError(f"The child of {target} ended with {outcome.returncode} at once.")
        crashes.append({"input": last, "returncode": outcome.returncode})
        start = last + 1
    seconds = time.perf_counter() - begin
    rate = FLAGS.inputs / seconds
    return {"target": target, **total, "crashes": crashes, "inputs_per_s": rate}


def main(argv: list[str]) -> None:
    """Runs every target and writes the counts."""
    del argv
    if FLAGS.child:
        print(json.dumps(run_child()))
        return
    if FLAGS.only is not None:
        corpus, feed = consumer(FLAGS.targets[0])
        feed(_input(corpus, FLAGS.targets[0], FLAGS.only))
        return
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for target in FLAGS.targets:
            row = run_target(target, directory)
            rows.append(row)
            print(
                f"{target:<8} {row['accepted']:>8,} accepted {row['refused']:>8,} refused "
                f"{row['findings']:>5,} findings {len(row['crashes']):>3,} crashes "
                f"{row['inputs_per_s']:>7,.0f} inputs/s"
            )
            for finding in (*row["details"], *row["crashes"]):
                print("   ", finding)
    if FLAGS.out:
        with open(FLAGS.out + ".tmp", "w", encoding="utf-8") as file:
            json.dump({"inputs": FLAGS.inputs, "seed": FLAGS.seed, "targets": rows}, file, indent=2)
        os.replace(FLAGS.out + ".tmp", FLAGS.out)


if __name__ == "__main__":
    app.run(main)
