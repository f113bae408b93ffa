# SPDX-License-Identifier: Apache-2.0
"""One compressed model, every way to a file: bytes, bytes under xz, latency and accuracy.

    python benchmarks/file_sizes.py --model_file atmc8.keras --out benchmarks/results/file_sizes

The same weights through the stock converter (which is also what pruning and clustering of TFMOT end
in once stripped), its options, ai-edge-quantizer where it is installed, and the exports of this
library: as it is, slimmed, factored, rounded to int8, within a byte budget, and as an archive.
Latency is measured in turns. Accuracy is that of the file in the stock interpreter, on clean images
and on images attacked through the Keras model.
"""

from __future__ import annotations

import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table

import tfmot_atmc as atmc
from tfmot_atmc.export import TFLiteModel, inspect_tflite, measure_latency, pack_archive
from tfmot_atmc.utils.files import write_json

EPSILON = 76 / 255

MODEL = flags.DEFINE_string("model_file", None, "A compressed model, .keras.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder for results.json.")
BUDGETS = flags.DEFINE_list("budgets", ["12KB", "10KB"], "Byte budgets to fit the model to.")
TEST = flags.DEFINE_integer("test", 1000, "Test images.")
ROUNDS = flags.DEFINE_integer("rounds", 31, "Rounds of the latency measurement.")
THREADS = flags.DEFINE_integer("threads", 0, "Threads of TensorFlow; 0 for all cores.")


def converted(model: keras.Model, *optimizations: Any) -> bytes:
    """What the stock converter writes."""
    function = tf.function(lambda x: model(x, training=False))
    signature = tf.TensorSpec((1, *model.inputs[0].shape[1:]), tf.float32)
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    frozen = convert_variables_to_constants_v2(function.get_concrete_function(signature))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    converter.optimizations = list(optimizations)
    return converter.convert()


def quantized(dense: bytes, recipe: str, folder: Path) -> bytes:
    """What ai-edge-quantizer makes of the converter's file."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes

    source = folder / "dense.tflite"
    source.write_bytes(dense)
    work = quantizer.Quantizer(str(source))
    work.load_quantization_recipe(getattr(recipes, recipe)())
    return bytes(work.quantize().quantized_model)


def stock_ways(plain: keras.Model, folder: Path) -> dict[str, Callable[[], bytes]]:
    sparsity, default = tf.lite.Optimize.EXPERIMENTAL_SPARSITY, tf.lite.Optimize.DEFAULT
    dense = converted(plain)
    return {
        "converter (and TFMOT, stripped)": lambda: dense,
        "converter, EXPERIMENTAL_SPARSITY": lambda: converted(plain, sparsity),
        "converter, DEFAULT (int8, dynamic)": lambda: converted(plain, default),
        "converter, DEFAULT and SPARSITY": lambda: converted(plain, default, sparsity),
        "ai-edge-quantizer, int8 dynamic": lambda: quantized(dense, "dynamic_wi8_afp32", folder),
        "ai-edge-quantizer, int8 weights": lambda: quantized(
            dense, "weight_only_wi8_afp32", folder
        ),
        "ai-edge-quantizer, int4 dynamic": lambda: quantized(dense, "dynamic_wi4_afp32", folder),
        "ai-edge-quantizer, int4 weights": lambda: quantized(
            dense, "weight_only_wi4_afp32", folder
        ),
    }


def own_ways(
    compressed: Any, plain: keras.Model, examples: np.ndarray, folder: Path
) -> dict[str, Callable[[], bytes]]:
    def export(model: keras.Model, **options: Any) -> bytes:
        path = folder / "own.tflite"
        atmc.export_tflite(model, path, inputs=examples, measure_latency=False, **options)
        return path.read_bytes()

    def fit(size: str) -> bytes:
        path = folder / "own.tflite"
        deployed = atmc.deploy(compressed, optimize="size", values="int8").model
        fitted = atmc.fit_to_bytes(deployed, path, size, examples, measure_latency=False)
        print(f"within {size}: {fitted.report.bytes:,} bytes, channels kept {fitted.channels}")
        return path.read_bytes()

    return {
        "tfmot-atmc, composed": lambda: export(plain, slim=False),
        "tfmot-atmc, slimmed": lambda: export(plain),
        "tfmot-atmc, slimmed, factored": lambda: export(atmc.deploy(compressed).model),
        "tfmot-atmc, slimmed, factored, int8": lambda: export(
            atmc.deploy(compressed, values="int8").model, values="int8"
        ),
        **{f"tfmot-atmc, within {size}": (lambda s=size: fit(s)) for size in BUDGETS.value},
    }


def entropy_bytes(path: Path) -> float:
    """Positions and codes of the file's weights, as a perfect coder would need."""
    return sum(t.entropy_bytes or 0.0 for t in inspect_tflite(path) if len(t.shape) > 1)


def measure(path: Path, x: np.ndarray, adversarial: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    run = TFLiteModel(path)
    right = [float((run(images)[0].argmax(1) == y).mean()) for images in (x, adversarial)]
    return {"clean": right[0], "transferred": right[1]}


def rows_of(ways: dict[str, Callable[[], bytes]], folder: Path, *images: Any) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    files = {}
    for number, (name, make) in enumerate(ways.items()):
        path = folder / f"{number}.tflite"
        try:
            path.write_bytes(make())
            rows[name] = {
                "bytes": path.stat().st_size,
                "xz_bytes": len(lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME)),
                "entropy_bytes": entropy_bytes(path),
                **measure(path, *images),
            }
        except Exception as error:  # other tools fail in ways of their own; the table says how
            rows[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
            continue
        files[name] = path
        if name.startswith("tfmot-atmc"):
            packed = pack_archive(path, path.with_suffix(".atmc"))
            rows[name]["archive"] = {
                "bytes": packed.archive_bytes,
                "graph": packed.graph_bytes,
                "entropy_bound": packed.entropy_bound,
            }
    latency = measure_latency(files, [images[0][:1]], rounds=ROUNDS.value)
    for name, milliseconds in latency.items():
        rows[name]["latency_ms"] = milliseconds
    return rows


def show(rows: dict[str, Any]) -> None:
    table = Table("file", "bytes", "xz", "archive", "latency ms", "clean", "transferred PGD-40")
    for name, row in rows.items():
        if "error" in row:
            table.add_row(name, "-", "-", "-", "-", "-", row["error"][:60])
            continue
        table.add_row(
            name,
            f"{row['bytes']:,}",
            f"{row['xz_bytes']:,}",
            f"{row['archive']['bytes']:,}" if "archive" in row else "",
            f"{row['latency_ms']:.3f}",
            f"{row['clean']:.1%}",
            f"{row['transferred']:.1%}",
        )
    Console(width=140).print(table)


def main(_: list[str]) -> None:
    if THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    compressed = keras.saving.load_model(MODEL.value, compile=False)
    plain = atmc.strip_compression(compressed)
    data = atmc.datasets.load("mnist")
    attack = atmc.attacks.PGD(epsilon=EPSILON, steps=40, step_size=EPSILON / 6)
    count = TEST.value
    x, y = data.x_test[:count], data.y_test[:count]
    parts = [
        attack(plain, tf.constant(x[i : i + 500]), tf.constant(y[i : i + 500])).numpy()
        for i in range(0, count, 500)
    ]
    images = (x, np.concatenate(parts), y)
    some = slice(0, 300)  # of the training images, clean and attacked: trimming measures on them
    hard = attack(plain, tf.constant(data.x_train[some]), tf.constant(data.y_train[some])).numpy()
    examples = np.concatenate([data.x_train[some], hard])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = stock_ways(plain, folder) | own_ways(compressed, plain, examples, folder)
        rows = rows_of(ways, folder, *images)
    show(rows)
    if OUT.value:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
        result = {"model": Path(MODEL.value).stem, "images": count, "rows": rows}
        write_json(Path(OUT.value) / "results.json", result)


if __name__ == "__main__":
    app.run(main)
