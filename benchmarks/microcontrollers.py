# SPDX-License-Identifier: Apache-2.0
r"""Measures C files for microcontrollers: flash, RAM, instructions, time here, and equality.

The models are the reference models, and MLPerf Tiny's ResNet-8 with random kernels of several
densities, of which only size and speed mean anything. Instructions are QEMU's for one image (the
first test image), counted by its SysTick timer under `-icount shift=0` to 40 instructions; they are
no cycles. Times are processor times, medians of interleaved rounds on one thread, the C code at
`-O3 -march=native`. Equality is that of all outputs with TensorFlow Lite Micro's, where its wheel
is installed.

    python benchmarks/microcontrollers.py --out benchmarks/results/microcontrollers.json
    python benchmarks/microcontrollers.py --robust --images 200 \
        --out benchmarks/results/microcontroller_robust.json

The second command exports the reference models that fit in `--max_flash` and `--max_ram`, runs them
on the emulated board with 256 KB of flash and 16 KB of RAM, and attacks the very C code. It needs
arm-none-eabi-gcc, qemu-system-arm and make. Further networks for MNIST are given as
`--keras name=file.keras`, attacked at radius `--epsilon`:

    python benchmarks/microcontrollers.py --robust --images 200 --autoattack \
        --keras mine=mine.keras --out robust.json
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import app, flags

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.common import show  # noqa: E402
from tests.c_code import integer_ends  # noqa: E402
from tfmot_atmc import attacks, datasets, evaluate_robustness, models  # noqa: E402
from tfmot_atmc.compression.deploy import deploy  # noqa: E402
from tfmot_atmc.compression.model import CompressedModel  # noqa: E402
from tfmot_atmc.export import CModel, TooLargeError, export_c  # noqa: E402
from tfmot_atmc.export.c import measure_footprint, write_board, write_images  # noqa: E402
from tfmot_atmc.export.c.compiled import find_compiler  # noqa: E402
from tfmot_atmc.export.tflite.conversion import convert, describe_inputs  # noqa: E402
from tfmot_atmc.export.tflite.interpreter import TFLiteModel  # noqa: E402
from tfmot_atmc.recipes.pipeline import load_keras  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_list("densities", ["0.1", "0.05", "0.01"], "Of the random ResNet-8.")
flags.DEFINE_enum("optimize", "balanced", ["balanced", "size", "speed"], "Of the C code.")
flags.DEFINE_integer("images", 1000, "Images to compare or attack.")
flags.DEFINE_bool("robust", False, "Attack the reference models that fit instead.")
flags.DEFINE_bool("autoattack", False, "With --robust: AutoAttack too, on the Keras twin.")
flags.DEFINE_string("max_flash", "8KB", "With --robust: most flash.")
flags.DEFINE_string("max_ram", "8KB", "With --robust: most RAM.")
flags.DEFINE_list("keras", [], "With --robust: further networks, as name=file.keras.")
flags.DEFINE_float("epsilon", 76 / 255, "Radius at which these are attacked.")
flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.")
flags.DEFINE_string("out", None, "JSON file to write the figures to.")

BOARDS = {"cortex-m4": "mps2-an386", "cortex-m0plus": "mps2-an385"}
_TICK = 40
_ROUNDS, _ROUND_SECONDS = 15, 0.02


def sparse_resnet8(density: float) -> keras.Model:
    """ResNet-8 with random kernels, a share `density` of each nonzero."""
    model = models.get("resnet8")
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            kept = rng.random(variable.shape) < density
            variable.assign(keras.ops.convert_to_numpy(variable) * kept / np.sqrt(density))
    return model


def run_board(folder: Path, board: str, level: str) -> dict[str, list[int]]:
    """Runs a folder's files in the project of `atmc export --board`; returns what it prints."""
    write_board(folder)
    command = ["make", "run", f"BOARD={board}", f"OPTIMIZE={level}", "DEFINES=-DPRINT_OUTPUTS"]
    shutil.rmtree(folder / "build", ignore_errors=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found: dict[str, list[int]] = {}
    for line in done.stdout.splitlines():
        label, _, value = line.rpartition(" ")
        if value.lstrip("-").isdigit():
            found.setdefault(label, []).append(int(value))
    return found


def measure_boards(path: Path, images: np.ndarray) -> dict[str, Any]:
    """Flash, RAM and instructions on two cores, at both levels of the compiler."""
    model = CModel(path)
    write_images(path.with_name("images.h"), model, images[:1], [0])
    expected = model.codes(model.quantize(images[:1])).reshape(-1).tolist()
    row: dict[str, Any] = {}
    for cpu, board in BOARDS.items():
        for level in ("-O2", "-Os"):
            footprint = measure_footprint(path, cpu, level)
            found = run_board(path.parent, board, level)
            if footprint is None or found["output"] != expected:
                raise RuntimeError(f"{board} computes something else than this machine.")
            row[f"{cpu} {level}"] = {
                "flash": footprint.flash,
                "static": footprint.static,
                "stack": found["bytes of stack"][0],
                "instructions": found["ticks of 40 instructions"][0] * _TICK,
            }
    return row


def loop(path: Path, image: np.ndarray) -> Callable[[int], None]:
    """The C code compiled for speed here, called many times in C."""
    name = CModel(path).name
    driver = path.with_name(f"{path.stem}_loop.c")
    driver.write_text(
        f'#include "{path.name}"\n'
        f"void repeat(int n, const {name}_input *x, {name}_output *y)"
        f"{{ while (n--) {name}_invoke(x, y); }}\n"
    )
    library = driver.with_suffix(".so")
    flags_ = ["-std=gnu99", "-O3", "-march=native", "-shared", "-fPIC"]
    subprocess.run([str(find_compiler()), *flags_, str(driver), "-o", str(library)], check=True)
    repeat = ctypes.CDLL(str(library)).repeat
    model = CModel(path)
    codes = np.ascontiguousarray(model.quantize(image[None])[0])
    output = np.zeros(model.output_size, model.output_type)
    return lambda n: repeat(n, ctypes.c_void_p(codes.ctypes.data),
                            ctypes.c_void_p(output.ctypes.data))  # fmt: skip


def stock(data: bytes, image: np.ndarray) -> Callable[[int], None]:
    """A dense .tflite file in the stock interpreter with its delegate."""
    model = TFLiteModel(data)
    model.set_inputs(image[None])

    def repeat(n: int) -> None:
        for _ in range(n):
            model.invoke()

    return repeat


def interleaved(runs: dict[str, Callable[[int], None]]) -> dict[str, float]:
    """Microseconds for one image: medians of rounds in turns."""
    counts = {}
    for name, run in runs.items():
        run(3)
        start = time.thread_time()
        run(10)
        counts[name] = max(3, int(10 * _ROUND_SECONDS / (time.thread_time() - start)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            start = time.thread_time()
            run(counts[name])
            times[name].append((time.thread_time() - start) / counts[name])
    return {name: float(np.median(found)) * 1e6 for name, found in times.items()}


def equality(path: Path, data: bytes, images: np.ndarray) -> dict[str, Any] | None:
    """Outputs that equal those of TensorFlow Lite Micro; None without its wheel."""
    try:
        from tflite_micro.python.tflite_micro import runtime
    except ImportError:
        return None
    model = CModel(path)
    codes = model.quantize(images)
    ours = model.codes(codes)
    interpreter = runtime.Interpreter.from_bytes(integer_ends(data), arena_size=1 << 21)
    equal = 0
    for code, output in zip(codes, ours, strict=True):
        interpreter.set_input(code[None], 0)
        interpreter.invoke()
        equal += int((interpreter.get_output(0).reshape(-1) == output).sum())
    return {"outputs": ours.size, "equal": equal, "images": len(images)}


def measure(name: str, model: keras.Model, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
    """All figures of one model."""
    with tempfile.TemporaryDirectory() as folder:
        path, single = Path(folder) / "model.c", Path(folder) / "float32.c"
        given = {"tolerance": 10.0, "min_agreement": 0.0, "optimize": FLAGS.optimize}
        report = export_c(model, path, representative=train, inputs=test[:256], **given)
        floats = export_c(model, single, values="float32", inputs=test[:256], **given)
        spec = describe_inputs(model, test, 1)
        dense = {"XNNPACK float32": convert(model, spec),
                 "XNNPACK int8": convert(model, spec, [train])}  # fmt: skip
        runs = {}
        for kind, data in dense.items():
            try:
                runs[kind] = stock(data, test[0])
            except ValueError as error:
                print(f"{name}: no time of {kind}. {error}")
        runs |= {"C float32": loop(single, test[0]), "C int8": loop(path, test[0])}
        return {
            "model": name,
            "nonzeros": sum(layer.nonzeros for layer in report.layers),
            "weight_bytes": report.weight_bytes,
            "table_bytes": report.table_bytes,
            "operations": report.operations,
            "dense_operations": report.dense_operations,
            "static": report.static_bytes,
            "float_difference": floats.max_difference,
            "boards": measure_boards(path, test),
            "microseconds": interleaved(runs),
            "tflm": equality(path, _converted(model, train), test),
        }


def _converted(model: keras.Model, train: np.ndarray) -> bytes:
    """The network that the C code was made from: slimmed, calibrated on the same images."""
    from tfmot_atmc.slimming import slim_model

    slimmed = slim_model(model)
    return convert(slimmed, describe_inputs(slimmed, train, 1), [train])


def _candidates() -> Iterator[tuple[str, keras.Model, float]]:
    """Names, networks and radii: those of the files, and the reference models."""
    for given in FLAGS.keras:
        name, _, path = given.partition("=")
        model = load_keras(path)
        if isinstance(model, CompressedModel):
            model = deploy(model, optimize="size").model
        yield name, model, FLAGS.epsilon
    for name in models.references.names():
        yield name, models.references.load(name), float(models.references.card(name)["epsilon"])


def robust(train: np.ndarray, data: datasets.Dataset) -> list[dict[str, Any]]:
    """Networks within the limits: their figures on the board, and under attack."""
    rows = []
    x, y = data.x_test[: FLAGS.images], data.y_test[: FLAGS.images]
    for name, model, epsilon in _candidates():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.c"
            limits = {"max_flash": FLAGS.max_flash, "max_ram": FLAGS.max_ram}
            try:
                report = export_c(model, path, representative=train, cpu="cortex-m0plus",
                                  optimize=FLAGS.optimize, **limits)  # fmt: skip
            except TooLargeError as error:
                print(f"{name}: {error}")
                continue
            level = next(f.optimize for f in report.footprints
                         if f.flash <= _bytes(FLAGS.max_flash))  # fmt: skip
            written = CModel(path)
            write_images(path.with_name("images.h"), written, x[:10], y[:10])
            found = run_board(path.parent, "microbit", level)
            same = found["output"] == written.codes(written.quantize(x[:10])).reshape(-1).tolist()
            (footprint,) = (f for f in report.footprints if f.optimize == level)
            chosen = [attacks.PGD(epsilon=epsilon, steps=40, step_size=epsilon / 6)]
            if FLAGS.autoattack:
                chosen.append(attacks.get("autoattack", epsilon=epsilon))
            through = evaluate_robustness(str(path), (x, y), attacks=chosen, source=model)
            itself = evaluate_robustness(
                str(path), (x, y), attacks=[attacks.Square(epsilon=epsilon, queries=500)]
            )
            rows.append(
                {
                    "model": name,
                    "level": level,
                    "flash": footprint.flash,
                    "static": footprint.static,
                    "stack": found["bytes of stack"][0],
                    "board equals": same,
                    "instructions": found["ticks of 40 instructions"][0] * _TICK,
                    "clean": through.clean_accuracy,
                    **{result.name: result.accuracy for result in through.attacks},
                    "Square": itself.attacks[0].accuracy,
                    "images": len(x),
                    "epsilon": epsilon,
                }
            )
            print(json.dumps(rows[-1]))
    return rows


def _bytes(text: str) -> int:
    from tfmot_atmc.math.sizes import parse_bytes

    return parse_bytes(text)


def main(arguments: list[str]) -> None:
    """Measures, prints and writes."""
    del arguments
    mnist = datasets.load("mnist", data_dir=FLAGS.data_dir)
    train = mnist.x_train[:300]
    if FLAGS.robust:
        rows = robust(train, mnist)
        show("Networks within the limits", rows)
    else:
        rows = []
        for name in models.references.names():
            images = mnist.x_test[: FLAGS.images]
            rows.append(measure(name, models.references.load(name), train, images))
            show_row(rows[-1])
        cifar = np.random.default_rng(0).random((FLAGS.images, 32, 32, 3)).astype(np.float32)
        for density in FLAGS.densities:
            model = sparse_resnet8(float(density))
            rows.append(measure(f"resnet8 {density}", model, cifar[:100], cifar))
            show_row(rows[-1])
    if FLAGS.out:
        Path(FLAGS.out).write_text(json.dumps(rows, indent=1) + "\n")


def show_row(row: dict[str, Any]) -> None:
    """Prints one model's figures."""
    for where, found in row["boards"].items():
        print(row["model"], where, found)
    print(row["model"], {k: round(v, 1) for k, v in row["microseconds"].items()}, row["tflm"])


if __name__ == "__main__":
    app.run(main)
