# SPDX-License-Identifier: Apache-2.0
"""What the tests of the C exporter share: random networks, other runtimes, and sanitizers."""

import shutil
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

from tfmot_atmc.export.c.compiled import find_compiler
from tfmot_atmc.export.tflite import flatbuffer

BOARD = Path(__file__).parent.parent / "tfmot_atmc" / "export" / "board"

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="there is no C compiler")
needs_arm = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
)
needs_qemu = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None
    or shutil.which("qemu-system-arm") is None
    or shutil.which("make") is None,
    reason="arm-none-eabi-gcc, qemu-system-arm or make is not installed",
)

# Reads examples from its input until it ends, and writes what the network returns.
RUNNER = """
#include <stdio.h>
#include "model.h"
int main(void) {
    static model_input input[MODEL_INPUT_SIZE];
    static model_output output[MODEL_OUTPUT_SIZE];
    while (fread(input, sizeof input[0], MODEL_INPUT_SIZE, stdin) == MODEL_INPUT_SIZE) {
        model_invoke(input, output);
        fwrite(output, sizeof output[0], MODEL_OUTPUT_SIZE, stdout);
    }
    return 0;
}
"""
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
SANITIZERS = (
    "-g",
    "-O1",
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize-recover=all",
)


def wide_flags():
    """What lets the compiler use this machine's wide registers, where it has them."""
    known = Path("/proc/cpuinfo")
    wide = known.exists() and " avx2 " in known.read_text()
    return ("-mavx2", "-mfma") if wide else ()


def run_sanitized(path, inputs, output_type, flags=()):
    """Runs a C file as a program of its own under both sanitizers; any fault fails the test."""
    folder = Path(path).parent
    (folder / "runner.c").write_text(RUNNER)
    sources = [str(folder / "runner.c"), str(path)]
    program = str(folder / "runner")
    subprocess.run(
        [find_compiler(), *STRICT, *SANITIZERS, *flags, *sources, "-o", program],
        check=True,
        capture_output=True,
    )
    done = subprocess.run([program], input=inputs.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[:2000]
    return np.frombuffer(done.stdout, output_type).reshape(len(inputs), -1)


def integer_ends(data):
    """A full-integer .tflite that takes and returns int8, as on a device."""
    model = flatbuffer.read_model(data)
    graph = model.subgraphs[0]
    kinds = {flatbuffer.builtin_code(model, o): o for o in graph.operators}
    first, last = (
        kinds[schema.BuiltinOperator.QUANTIZE],
        kinds[schema.BuiltinOperator.DEQUANTIZE],
    )
    if graph.operators[0].inputs[0] == graph.inputs[0]:
        first = graph.operators[0]
    graph.operators = [o for o in graph.operators if o is not first and o is not last]
    graph.inputs = np.array([first.outputs[0]], np.int32)
    graph.outputs = np.array([last.inputs[0]], np.int32)
    model.signatureDefs = []
    return flatbuffer.pack_model(model)


def run_tflm(data, codes):
    """What TensorFlow Lite Micro returns for int8 codes `[batch, ...]`; skips where it is not."""
    runtime = pytest.importorskip(
        "tflite_micro.python.tflite_micro.runtime", reason="tflite-micro is not installed"
    )
    interpreter = runtime.Interpreter.from_bytes(integer_ends(data), arena_size=1 << 21)
    outputs = []
    for code in codes:
        interpreter.set_input(code[None], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0).reshape(-1))
    return np.array(outputs)


def random_network(rng):
    """A small network of random layers with random sparse kernels, and inputs for it."""
    if rng.random() < 0.2:
        inputs = keras.Input((int(rng.integers(8, 30)), int(rng.integers(1, 4))))
        model = keras.Model(inputs, _head(rng, _columns(rng, inputs)))
    else:
        shape = (int(rng.integers(5, 15)), int(rng.integers(5, 15)), int(rng.integers(1, 5)))
        inputs = keras.Input(shape)
        x = inputs
        for _ in range(int(rng.integers(1, 4))):
            x = _block(rng, x)
        model = keras.Model(inputs, _head(rng, x))
    for variable in model.weights:
        kept = rng.random(variable.shape) < rng.choice([0.1, 0.4, 1.0])
        values = rng.normal(0.0, 0.4, variable.shape)
        if "variance" in variable.path or "gamma" in variable.path:
            kept, values = True, np.abs(values) + 0.5
        variable.assign(values * kept)
    examples = rng.normal(0.0, 1.0, (24, *model.input_shape[1:])).astype(np.float32)
    return model, examples


def _columns(rng, x):
    for _ in range(2):
        width = int(rng.integers(1, 5))
        x = layers.Conv1D(4, width, padding=rng.choice(["same", "valid"]), activation="relu")(x)
    return layers.GlobalAveragePooling1D()(x) if rng.random() < 0.5 else layers.Flatten()(x)


def _block(rng, x):
    channels, smallest = x.shape[-1], min(x.shape[1:3])
    padding = str(rng.choice(["same", "valid"]))
    size = int(rng.integers(1, min(4, smallest) + 1))
    kind = rng.choice(["conv", "depthwise", "residual", "pool", "concat", "pad"])
    if kind == "depthwise":
        x = layers.DepthwiseConv2D(size, padding=padding, depth_multiplier=int(rng.integers(1, 3)))(
            x
        )
        return layers.ReLU(6.0)(layers.BatchNormalization()(x))
    if kind == "residual":
        y = layers.Conv2D(channels, size, padding="same", activation="relu")(x)
        y = layers.Conv2D(channels, 1)(y) if rng.random() < 0.5 else y
        return layers.ReLU()(layers.Add()([x, y] if rng.random() < 0.5 else [y, x]))
    if kind == "pool" and smallest > 2:
        pool = rng.choice([layers.MaxPooling2D, layers.AveragePooling2D])
        return pool(2, strides=int(rng.integers(1, 3)), padding=padding)(x)
    if kind == "concat":
        y = layers.Conv2D(3, size, padding="same")(x)
        return layers.Concatenate()([x, y])
    if kind == "pad":
        x = layers.ZeroPadding2D(((0, 1), (2, 1)))(x)
        return layers.Conv2D(4, size, strides=(1, 2))(x)
    stride = 1 if smallest < 4 else int(rng.integers(1, 4))
    activation = rng.choice(["relu", "relu6", "linear"])
    x = layers.Conv2D(5, size, strides=stride, padding=padding, activation=str(activation))(x)
    even = min(x.shape[1:3]) >= 2 and rng.random() < 0.4
    return layers.MaxPooling2D(2)(x) if even else x


def _head(rng, x):
    if len(x.shape) == 4:
        pools = [layers.Flatten(), layers.GlobalAveragePooling2D(), layers.GlobalMaxPooling2D()]
        x = pools[rng.integers(3)](x)
    last = str(rng.choice(["linear", "softmax", "sigmoid"]))
    return layers.Dense(int(rng.integers(2, 6)), activation=last)(x)
