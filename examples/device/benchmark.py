# SPDX-License-Identifier: Apache-2.0
"""Measures .tflite files on this device; needs only ai-edge-litert, NumPy and classify.py.

    python benchmark.py small.tflite dense.tflite --threads 1 --json results.json

The files take turns, so that whatever else the device does slows all of them alike. Memory is the
peak of a process of its own for each file, beside that of one that only imports the libraries.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from classify import load_interpreter

_LOADS = 7
_TURN_SECONDS = 0.01
_COLUMNS = ("bytes", "load ms", "median ms", "10% ms", "90% ms", "peak MiB", "delegated")


def fill_inputs(interpreter: Interpreter) -> None:
    """Sets random inputs: floats in [0, 1), any byte, and zeros for other types."""
    rng = np.random.default_rng(0)
    for detail in interpreter.get_input_details():
        kind, shape = np.dtype(detail["dtype"]), detail["shape"]
        if kind.kind == "f":
            values = rng.random(shape)
        elif kind.itemsize == 1 and kind.kind in "iu":
            values = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, shape, endpoint=True)
        else:
            values = np.zeros(shape)
        interpreter.set_tensor(detail["index"], values.astype(kind))


def prepare(path: str, threads: int) -> Interpreter:
    """Loads a model, sets its inputs and runs it once."""
    interpreter = load_interpreter(path, threads=threads)
    try:
        fill_inputs(interpreter)
        interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not run: {error}") from error
    return interpreter


def _peak_here(path: str | None, threads: int) -> int | None:
    try:
        import resource
    except ImportError:  # as on Windows
        return None
    if path is not None:
        prepare(path, threads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory(path: str | None, threads: int) -> int | None:
    """Returns the peak memory in bytes of a process that runs a model; None for no model at all.

    A process inherits the peak of the one that starts it, so call this before loading a model.
    """
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            return pool.submit(_peak_here, path, threads).result()
    except BrokenProcessPool as error:
        raise ValueError(f"The process that ran {path} to measure its memory died.") from error


def _readable(interpreter: Interpreter) -> set[int]:
    readable = set()
    for detail in interpreter.get_tensor_details():
        try:
            interpreter.get_tensor(detail["index"])
        except ValueError:
            continue
        readable.add(detail["index"])
    return readable


def delegated_tensors(path: str, threads: int) -> tuple[int, int]:
    """Counts the intermediate results that the default delegate keeps to itself.

    The interpreter does not publish its operators. But an intermediate result that can be read
    without a delegate and cannot be read with it stays inside the delegate. All of them do where
    the delegate runs the model in one piece; an operator that it runs by itself hides none.

    Args:
        path: Path of a .tflite file.
        threads: Threads of the interpreter.

    Returns:
        How many intermediate results the delegate keeps, and how many there are. Weights that the
        model unpacks when it starts count as results.
    """
    plain = load_interpreter(
        path,
        threads=threads,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    with_delegate = prepare(path, threads)
    details = (*plain.get_input_details(), *plain.get_output_details())
    # Constants are readable before anything is allocated.
    constants = _readable(Interpreter(path))
    common = {detail["index"] for detail in with_delegate.get_tensor_details()}
    results = (_readable(plain) & common) - constants - {detail["index"] for detail in details}
    return len(results - _readable(with_delegate)), len(results)


def measure_loading(paths: Sequence[str], threads: int) -> dict[str, float]:
    """Returns the median time in milliseconds to load each file and allocate its tensors."""
    times: dict[str, list[float]] = {path: [] for path in paths}
    for _ in range(_LOADS):
        for path in paths:
            start = time.perf_counter()
            load_interpreter(path, threads=threads)
            times[path].append(time.perf_counter() - start)
    return {path: float(np.median(times[path])) * 1e3 for path in paths}


def _time_run(model: Interpreter) -> float:
    start = time.perf_counter()
    model.invoke()
    return time.perf_counter() - start


def measure_latency(paths: Sequence[str], threads: int, rounds: int) -> dict[str, np.ndarray]:
    """Times each file for about 10 ms a turn, in turns.

    Args:
        paths: Paths of .tflite files.
        threads: Threads to run with.
        rounds: Turns of each file.

    Returns:
        Milliseconds of every single run, by path.
    """
    models = {path: prepare(path, threads) for path in paths}
    repeats = {}
    for path, model in models.items():
        fastest = min(_time_run(model) for _ in range(3))
        repeats[path] = max(1, int(_TURN_SECONDS / max(fastest, 1e-6)))
    times: dict[str, list[float]] = {path: [] for path in paths}
    for _ in range(rounds):
        for path, model in models.items():
            times[path] += [_time_run(model) for _ in range(repeats[path])]
    return {path: np.array(measured) * 1e3 for path, measured in times.items()}


def benchmark(paths: Sequence[str], *, threads: int = 1, rounds: int = 30) -> dict[str, Any]:
    """Measures .tflite files.

    Args:
        paths: Paths of the files; each is measured once.
        threads: Threads to run with.
        rounds: Turns of each file, at least 1.

    Returns:
        A dictionary that JSON takes: the device, the settings, and one entry for each file.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If an argument is out of range, or a file is not a .tflite file or does not run.
    """
    paths = list(dict.fromkeys(paths))
    if rounds < 1:
        raise ValueError(f"The number of rounds must be at least 1, got {rounds}.")
    for path in paths:
        load_interpreter(path, threads=threads)  # a bad file is named before anything is measured
    baseline = peak_memory(None, threads)
    peaks = {path: peak_memory(path, threads) for path in paths}
    loading = measure_loading(paths, threads)
    latency = measure_latency(paths, threads, rounds)
    models = []
    for path in paths:
        low, median, high = np.percentile(latency[path], (10, 50, 90))
        delegated, results = delegated_tensors(path, threads)
        models.append(
            {
                "file": path,
                "bytes": os.path.getsize(path),
                "load_ms": loading[path],
                "median_ms": float(median),
                "p10_ms": float(low),
                "p90_ms": float(high),
                "runs": len(latency[path]),
                "peak_bytes": peaks[path],
                "delegated_tensors": delegated,
                "intermediate_tensors": results,
            }
        )
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "ai_edge_litert": importlib.metadata.version("ai-edge-litert"),
        "threads": threads,
        "rounds": rounds,
        "baseline_peak_bytes": baseline,
        "models": models,
    }


def _mebibytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:.1f}"


def format_table(results: dict[str, Any]) -> str:
    """Returns the results of `benchmark` as a table."""
    rows = [("file", *_COLUMNS)]
    for model in results["models"]:
        times = (model[key] for key in ("load_ms", "median_ms", "p10_ms", "p90_ms"))
        rows.append(
            (
                os.path.basename(model["file"]),
                f"{model['bytes']:,}",
                *(f"{milliseconds:.3f}" for milliseconds in times),
                _mebibytes(model["peak_bytes"]),
                f"{model['delegated_tensors']} of {model['intermediate_tensors']}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join((name.ljust(widths[0]), *right)))
    lines.append(
        f"{results['threads']} thread(s), {results['rounds']} turns; without a model the peak is "
        f"{_mebibytes(results['baseline_peak_bytes'])} MiB; delegated: intermediate results that "
        "stay inside the default delegate"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures .tflite files on this device.")
    parser.add_argument("models", nargs="+", help=".tflite files to compare")
    parser.add_argument("--threads", type=int, default=1, help="threads to run with")
    parser.add_argument("--rounds", type=int, default=30, help="turns of each file")
    parser.add_argument("--json", metavar="FILE", help="file to write the results to")
    arguments = parser.parse_args()
    try:
        results = benchmark(arguments.models, threads=arguments.threads, rounds=arguments.rounds)
        if arguments.json:
            partial = f"{arguments.json}.partial"
            with open(partial, "w", encoding="utf-8") as file:
                json.dump(results, file, indent=2)
            os.replace(partial, arguments.json)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{os.path.basename(sys.argv[0])}: error: {error}\n")
    print(format_table(results))


if __name__ == "__main__":
    main()
