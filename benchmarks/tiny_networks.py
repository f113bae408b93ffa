# SPDX-License-Identifier: Apache-2.0
"""MLPerf Tiny's four networks by the default settings, beside the stock converter's int8 files.

    python benchmarks/tiny_networks.py --networks ds_cnn,autoencoder --out results

Each network is trained on made-up data of its shape, compressed by ATMC at ratio 0.1 with 8 bits
and no further setting, stripped and exported; DS-CNN and ResNet-8 once more under PGD-3. Stock
files are the converter's own of the same dense network: full integer, a scale for each filter.
Latency is the median on one thread, of all files in turns.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfmot_atmc as atmc
from tfmot_atmc.datasets import made_up
from tfmot_atmc.export import TFLiteModel, measure_latency
from tfmot_atmc.utils.files import write_json

NETS = flags.DEFINE_list("networks", list(made_up.NETWORKS), "Networks.")
EPOCHS = flags.DEFINE_integer("epochs", 6, "Epochs of the dense training, and of compression.")
OUT = flags.DEFINE_string("out", "benchmarks/results/tiny_networks", "Folder for results.")
RATIO = flags.DEFINE_float("ratio", 0.1, "Nonzeros per dense weight.")
ATTACKED = {"ds_cnn": 8 / 255, "resnet8": 8 / 255}


def stock_int8(model: keras.Model, samples: np.ndarray) -> bytes:
    """The stock converter's full-integer file of a model."""
    function = tf.function(lambda x: model(x, training=False))
    concrete = function.get_concrete_function(tf.TensorSpec((1, *samples.shape[1:])))
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    frozen = convert_variables_to_constants_v2(concrete)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x[None]] for x in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def score(outputs: np.ndarray, data: Any) -> float:
    """Accuracy, or the square error of the autoencoder."""
    if data.task == "numbers":
        return float(np.mean((outputs - data.y_test) ** 2))
    return float(np.mean(outputs.argmax(-1) == data.y_test))


def compiled(model: Any, data: Any, rate: float, steps: int) -> Any:
    loss: Any = "mse"
    if data.num_classes:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    decay = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(decay), loss)
    return model


def one(network: str, attacked: bool) -> dict[str, Any]:
    keras.utils.set_random_seed(0)
    data = atmc.datasets.load(made_up.NETWORKS[network])
    more = {"num_classes": data.num_classes} if data.num_classes else {}
    dense = atmc.models.get(network, input_shape=data.input_shape, seed=0, **more)
    steps = EPOCHS.value * -(-len(data.x_train) // 32)
    pair = (data.x_train, data.y_train)
    compiled(dense, data, 2e-3, steps).fit(*pair, epochs=EPOCHS.value, verbose=0)
    attack = atmc.attacks.PGD(epsilon=ATTACKED[network], steps=3) if attacked else None
    small = atmc.compress(dense, "atmc", ratio=RATIO.value, bits=8, attack=attack)
    compiled(small, data, 1e-3, steps)
    done = [atmc.callbacks.UpdateCompression()]
    small.fit(*pair, epochs=EPOCHS.value, verbose=0, callbacks=done)
    plain = atmc.strip_compression(small)
    folder = Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    samples, files = data.x_train[:300], {}
    stock = stock_int8(dense, samples[:100])
    found: dict[str, Any] = {
        "dense": score(dense.predict(data.x_test, verbose=0), data),
        "deployed": score(plain.predict(data.x_test, verbose=0), data),
        "empty_layers": list(small.compression_report().empty),
        "stock int8": {
            "bytes": len(stock),
            "score": score(TFLiteModel(stock)(data.x_test)[0], data),
        },
    }
    for values in ("int8", "full_int8"):
        path = folder / f"{network}-{values}.tflite"
        given = {"representative": samples} if values == "full_int8" else {}
        report = atmc.export_tflite(
            plain, path, inputs=data.x_test[:256], values=values, measure_latency=False, **given
        )
        files[values] = path.read_bytes()
        found[values] = {
            "bytes": report.bytes,
            "difference": report.max_difference,
            "labels agree": report.label_agreement,
            "score": score(TFLiteModel(files[values])(data.x_test)[0], data),
        }
        path.unlink()
    times = measure_latency({"stock int8": stock, **files}, [data.x_test[:1]])
    for name, milliseconds in times.items():
        found[name]["ms"] = milliseconds
    if attacked:
        strong = atmc.attacks.PGD(epsilon=ATTACKED[network], steps=20)
        for name, model in (("dense", dense), ("deployed", plain)):
            report = atmc.evaluate_robustness(
                model, (data.x_test, data.y_test), attacks=strong, checks=False, verbose=0
            )
            found[f"{name} under PGD-20"] = report.robust_accuracy
    return found


def main(_: list[str]) -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    path = Path(OUT.value) / "results.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for network in NETS.value:
        for attacked in (False, True):
            name = f"{network}{' under PGD-3' if attacked else ''}"
            if name in kept or (attacked and network not in ATTACKED):
                continue
            kept[name] = one(network, attacked)
            print(name, json.dumps(kept[name], indent=1), flush=True)
            write_json(path, kept)


if __name__ == "__main__":
    app.run(main)
