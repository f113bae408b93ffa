# SPDX-License-Identifier: Apache-2.0
r"""Measures exported files of a LeNet at several densities beside the stock converter's.

The kernels are random and randomly sparse, which no encoding can exploit beyond the zeros; trained
kernels are easier. Each density is exported with arbitrary float32 values and with values on an
int8 grid, and converted by the stock converter, plainly and with its EXPERIMENTAL_SPARSITY.
Latencies are medians of interleaved runs on one thread: compare them within a density only.

    python benchmarks/export.py --out export.json
"""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import os
import sys
import tempfile
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tfmot_atmc import models  # noqa: E402
from tfmot_atmc.export import export_tflite, measure_latency  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_list("densities", ["0.1", "0.05", "0.01", "0.002"], "Shares of nonzero weights.")
flags.DEFINE_integer("seed", 0, "Seed of the random kernels.")
flags.DEFINE_string("out", None, "JSON file to write the figures to.")

_GRID_SCALE = np.float32(2.0**-9)


def sparse_lenet(density: float, grid: bool, seed: int) -> keras.Model:
    """Returns a LeNet with random kernels, a share `density` of them nonzero."""
    model = models.lenet()
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if len(variable.shape) < 2:
            continue
        values = rng.normal(0.0, 0.1, variable.shape).astype(np.float32)
        if grid:
            codes = np.clip(np.rint(values / _GRID_SCALE), -127, 127)
            # No kept weight may round to zero, or the two kinds would differ in density.
            values = np.where(codes == 0, np.float32(1), codes) * _GRID_SCALE
        kept = rng.permutation(values.size) < round(density * values.size)
        variable.assign(values * kept.reshape(values.shape))
    return model


def convert(model: keras.Model, sparsity: bool) -> bytes:
    """Converts with the stock converter."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if sparsity:
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    with contextlib.redirect_stdout(io.StringIO()):
        return converter.convert()


def measure(density: float, directory: str) -> list[dict[str, Any]]:
    """Measures all four files of one density."""
    rows: list[dict[str, Any]] = []
    contents: dict[str, bytes] = {}
    for grid in (False, True):
        model = sparse_lenet(density, grid, FLAGS.seed)
        if not grid:
            contents["converter"] = convert(model, sparsity=False)
            contents["converter EXPERIMENTAL_SPARSITY"] = convert(model, sparsity=True)
        name = "export_tflite, int8 grid" if grid else "export_tflite, float32 values"
        path = os.path.join(directory, "model.tflite")
        report = export_tflite(model, path, measure_latency=False)
        with open(path, "rb") as file:
            contents[name] = file.read()
        rows.append({"file": name, "max_difference": report.max_difference})
    images = np.random.default_rng(0).random((1, 28, 28, 1), np.float32)
    latency = measure_latency(contents, [images])
    differences = {row["file"]: row["max_difference"] for row in rows}
    return [
        {
            "density": density,
            "file": name,
            "bytes": len(content),
            "xz_bytes": len(lzma.compress(content)),
            "latency_ms": latency[name],
            "max_difference": differences.get(name),
        }
        for name, content in contents.items()
    ]


def main(argv: list[str]) -> None:
    """Measures every density and writes the figures."""
    del argv
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for density in FLAGS.densities:
            rows += measure(float(density), directory)
    for row in rows:
        print(
            f"{row['density']:<6} {row['file']:<34} {row['bytes']:>9,} bytes "
            f"(xz {row['xz_bytes']:>9,}) {row['latency_ms']:.3f} ms"
        )
    if FLAGS.out:
        temporary = FLAGS.out + ".tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"tensorflow": tf.__version__, "rows": rows}, file, indent=2)
        os.replace(temporary, FLAGS.out)


if __name__ == "__main__":
    app.run(main)
