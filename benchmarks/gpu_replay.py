# SPDX-License-Identifier: Apache-2.0
"""Compiles and runs lowered programs with the XLA that comes with JAX; needs no TensorFlow.

    python benchmarks/gpu_replay.py --lowered lowered --out figures --minutes 5

The programs are those that `gpu_lowering.py` wrote. They are compiled in parallel, checked against
what TensorFlow gave on a CPU where that was kept, and timed in turns within their group. Figures
are written after every group, so that those of a run that is cut off are kept.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import lzma
import os
import statistics
import threading
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from gpu_sections import in_turns, summary, write_json  # noqa: E402
from jax._src.lib import xla_client  # noqa: E402

# One conversion at a time; compilation itself may go on in parallel.
_CONVERTING = threading.Lock()
_ORDER = ("ratios", "selection", "correctness")


class Replay:
    """One lowered program on the first device of JAX.

    Args:
        stem: path of its files without their endings.
    """

    def __init__(self, stem: Path):
        self.about = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        self.name: str = self.about["name"]
        self.group: str = self.about.get("group") or self.name
        self._stem = stem
        self.figures: dict[str, Any] = {}
        self.arguments: list[Any] = []

    def compile(self) -> None:
        """Compiles the program and reads what it needs of memory."""
        began = time.perf_counter()
        module = lzma.decompress(Path(f"{self._stem}.hlo.xz").read_bytes())
        with _CONVERTING:
            stablehlo = xla_client._xla.mlir.hlo_to_stablehlo(module)
        device = jax.devices()[0]
        devices = xla_client.DeviceList((device,))
        self.program = device.client.compile_and_load(
            stablehlo, devices, xla_client.CompileOptions()
        )
        self.figures["compile_s"] = time.perf_counter() - began
        stats = self.program.get_compiled_memory_stats()
        held = stats.argument_size_in_bytes + stats.output_size_in_bytes
        held += stats.temp_size_in_bytes - stats.alias_size_in_bytes
        self.figures["memory_bytes"] = int(held)

    def start(self) -> None:
        """Puts the parameters' first values on the device."""
        with np.load(f"{self._stem}.npz") as arrays:
            self.expected = {k[9:]: arrays[k] for k in arrays.files if k.startswith("expected_")}
            values = [
                _value(record, arrays.get(f"p{i}"), i)
                for i, record in enumerate(self.about["parameters"])
            ]
        if self.about.get("kept") and not self.expected:
            values[0] = _weights(values[0].size, self.about["kept"])
        self.first = values if self.expected else []
        self.arguments = [jax.device_put(value, jax.devices()[0]) for value in values]

    def call(self) -> list[Any]:
        """Takes one call; variables move on. Returns the other outputs, which may not be ready."""
        results = self.program.execute_sharded(self.arguments)
        outputs = [parts[0] for parts in results.disassemble_into_single_device_arrays()]
        updated = {output for output, _ in self.about["updates"]}
        for output, parameter in self.about["updates"]:
            self.arguments[parameter] = outputs[output]
        return [value for i, value in enumerate(outputs) if i not in updated] + outputs[:1]

    def check(self) -> None:
        """Compares the first call with what is expected."""
        names = self.about["outputs"]
        outputs = dict(zip(names, self.call(), strict=False))
        worst, scalars = 0.0, {}
        for name, wanted in self.expected.items():
            got = self.arguments[int(name[1:])] if name[0] == "p" and name not in outputs else None
            got = np.asarray(outputs[name] if got is None else got)
            if wanted.ndim == 0 and wanted.dtype.kind == "f":
                scalars[name] = [float(got), float(wanted)]
            if got.shape != wanted.shape:
                raise ValueError(f"{name}: shape {got.shape}, expected {wanted.shape}")
            first = self.first[int(name[1:])] if name not in outputs else 0.0
            worst = max(worst, _distance(got, wanted, first))
        self.figures |= {"worst_relative_difference": worst, "scalars": scalars}

    def release(self) -> None:
        """Frees what it holds on the device."""
        self.arguments = []
        self.program = None


def _value(record: dict[str, Any], kept: np.ndarray | None, seed: int) -> np.ndarray:
    if kept is not None:
        return kept
    shape, dtype = record["shape"], record["dtype"]
    if "constant" in record:
        return np.full(shape, record["constant"], dtype)
    drawn = np.random.default_rng(seed).random(shape, np.float32)
    return (record["low"] + (record["high"] - record["low"]) * drawn).astype(dtype)


def _weights(size: int, kept: float) -> np.ndarray:
    """Returns normally distributed weights of which the largest share is kept."""
    x = np.random.default_rng(0).standard_normal(size, np.float32)
    if kept < 1:
        x[np.abs(x) < np.quantile(np.abs(x[:1_000_000]), 1 - kept)] = 0
    return x


def _distance(got: np.ndarray, wanted: np.ndarray, first: Any) -> float:
    """Returns how far the change from the first value is from the wanted one, relatively."""
    if wanted.dtype.kind not in "f":
        return float(np.mean(got != wanted))
    got, wanted, first = (np.asarray(a, np.float64) for a in (got, wanted, first))
    change = np.linalg.norm(wanted - first)
    difference = np.linalg.norm(got - wanted)
    return float(difference / change) if change > 1e-12 else float(difference)


def compile_all(programs: list[Replay], workers: int, deadline: float) -> None:
    """Compiles in parallel; what fails or comes too late says so in its figures."""
    jax.devices()  # begun by several threads at once, a client may crash
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    futures = {pool.submit(program.compile): program for program in programs}
    done, late = concurrent.futures.wait(futures, timeout=max(deadline - time.monotonic(), 1))
    for future in done:
        error = future.exception()
        if error is not None:
            futures[future].figures["failed"] = f"compile: {str(error)[:600]}"
    for future in late:
        future.cancel()
        futures[future].figures["failed"] = "not compiled in time"
    pool.shutdown(wait=False, cancel_futures=True)


def time_group(programs: list[Replay], seconds: float) -> None:
    """Checks programs where there is something to compare with, and times them in turns."""
    for program in programs:
        program.start()
        if program.expected:
            program.check()
    calls = {program.name: program.call for program in programs}
    times = in_turns(calls, jax.block_until_ready, seconds)
    base = statistics.median(times[programs[0].name])
    for program in programs:
        program.figures |= summary(times[program.name], base, program.about)


def run(arguments: argparse.Namespace) -> None:
    """Runs all programs of the folder, group by group."""
    deadline = time.monotonic() + 60 * arguments.minutes
    stems = sorted(p.with_suffix("") for p in Path(arguments.lowered).glob("*.json"))
    programs = [Replay(stem) for stem in stems]
    if arguments.only:
        wanted = arguments.only.split(",")
        programs = [p for p in programs if any(part in p.group for part in wanted)]
    programs.sort(key=lambda p: (_ORDER.index(p.about["section"]), p.about["order"]))
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    report: dict[str, Any] = {
        "device": device.device_kind,
        "platform": device.client.platform_version,
        "jax": jax.__version__,
        "programs": {},
    }
    began = time.monotonic()
    compile_all(programs, arguments.workers, deadline - 0.3 * 60 * arguments.minutes)
    report["compile_all_s"] = time.monotonic() - began
    print(f"compiled {len(programs)} in {report['compile_all_s']:.0f} s", flush=True)
    groups: dict[str, list[Replay]] = {}
    for program in programs:
        groups.setdefault(program.group, []).append(program)
    for members in groups.values():
        if time.monotonic() > deadline:
            break
        good = [p for p in members if "failed" not in p.figures]
        try:
            if good:
                time_group(good, arguments.seconds * len(good) / 4)
        except Exception as error:  # one group must not cost the others
            traceback.print_exc()
            for program in good:
                program.figures.setdefault("failed", f"run: {str(error)[:600]}")
        for program in members:
            report["programs"][program.name] = {
                key: program.about.get(key)
                for key in ("section", "group", "precision", "images", "flops", "bytes")
            } | program.figures
            print(program.name, _short(program.figures), flush=True)
            program.release()
        write_json(out / arguments.name, report)
    report["seconds"] = time.monotonic() - began
    write_json(out / arguments.name, report)


def _short(figures: dict[str, Any]) -> str:
    kept = {k: v for k, v in figures.items() if k not in ("scalars", "times_ms")}
    return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in kept.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lowered", required=True, help="Folder of lowered programs.")
    parser.add_argument("--out", required=True, help="Folder for the figures.")
    parser.add_argument("--name", default="replay.json", help="File for the figures.")
    parser.add_argument("--minutes", type=float, default=5.0, help="Time to end in.")
    parser.add_argument("--seconds", type=float, default=3.0, help="Time to measure four programs.")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="Parts of group names, by commas.")
    run(parser.parse_args())
    os._exit(0)  # threads that still compile must not hold it up


if __name__ == "__main__":
    main()
