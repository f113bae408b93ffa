# SPDX-License-Identifier: Apache-2.0
"""Classifies images with a .tflite file; needs only ai-edge-litert and NumPy.

    python classify.py model.tflite images.npy --labels labels.npy --top 3

`images.npy` holds floats in the units of the model or bytes as a camera gives them, shaped
`[count, height, width, channels]`; the last axis may be left out where the model takes one channel,
and the first for one image. A file with a uint8 input takes bytes as they are; for any other,
`--divide 255` says that the model takes values in [0, 1], `--divide 1` that it takes 0 to 255. Each
line names the likeliest classes of one image and their scores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

_IDENTIFIER = b"TFL3"  # bytes 4 to 8 of every .tflite file
_NOTES = b"tfmot_atmc"  # where the exporter writes the names of the classes
_SUM_TOLERANCE = 0.05  # how far quantisation may move the sum of ten probabilities from 1


def load_interpreter(path: str, *, threads: int = 1, **options: Any) -> Interpreter:
    """Loads a .tflite file and allocates its tensors.

    Args:
        path: Path of the file.
        threads: Threads to run with, at least 1.
        **options: Further arguments of `ai_edge_litert.interpreter.Interpreter`.

    Returns:
        An interpreter that is ready to run.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If `threads` is less than 1, the file is not a .tflite file, or the interpreter
            does not accept it.
    """
    if threads < 1:
        raise ValueError(f"The number of threads must be at least 1, got {threads}.")
    with open(path, "rb") as file:
        if file.read(8)[4:] != _IDENTIFIER:
            raise ValueError(f"{path} is not a .tflite file: bytes 4 to 8 are not 'TFL3'.")
    try:
        interpreter = Interpreter(path, num_threads=threads, **options)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"The interpreter does not accept {path}: {error}") from error
    return interpreter


def load_array(path: str) -> np.ndarray:
    """Loads a .npy file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not a .npy file of numbers.
    """
    with open(path, "rb") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path} is not a .npy file of numbers: {error}") from error


def prepare_images(
    images: np.ndarray, signature: np.ndarray, divide: float | None = None, raw: bool = False
) -> np.ndarray:
    """Brings images to the model's units and shape.

    Args:
        images: Floats in these units, or bytes, of shape `[count, ...]` or of one image's shape.
        signature: Shape that the model takes, batch first; -1 where any size is taken.
        divide: What bytes are divided by, to be in the units of the model.
        raw: Whether the model takes bytes as they are.

    Returns:
        Array `[count, ...]`, uint8 where the model takes bytes as they are, else float32.

    Raises:
        ValueError: If the type or the shape does not fit, a value is not finite, there is no image,
            or it is not told what bytes mean.
    """
    wanted = tuple(int(size) for size in signature[1:])
    if images.dtype == np.uint8:
        if divide is not None:
            images = images.astype(np.float32) / np.float32(divide)
        elif not raw:
            raise ValueError(
                "The images are bytes and the model takes other values: add --divide 255 where it "
                "takes values in [0, 1], or --divide 1 where it takes 0 to 255."
            )
    elif images.dtype.kind != "f":
        raise ValueError(f"Expected images of floats or of uint8, got {images.dtype}.")
    given = images.shape
    if wanted[-1:] == (1,) and (_fits(given, wanted[:-1]) or _fits(given[1:], wanted[:-1])):
        images = images[..., np.newaxis]
    if _fits(images.shape, wanted):
        images = images[np.newaxis]
    if not _fits(images.shape[1:], wanted):
        raise ValueError(
            f"The model takes images of shape {list(wanted)}, the array has the shape "
            f"{list(given)}; expected {['count', *wanted]}."
        )
    if not len(images):
        raise ValueError("The array holds no image.")
    if images.dtype == np.uint8:
        return images
    with np.errstate(over="ignore"):
        images = images.astype(np.float32)
    finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if not finite.all():
        raise ValueError(f"Image {int(np.argmin(finite))} has values that are not finite.")
    return images


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want in (-1, size) for size, want in zip(shape, wanted, strict=True)
    )


def quantize(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """Converts float32 values to the type of a tensor, by its scale and zero point."""
    kind = np.dtype(detail["dtype"])
    if values.dtype == kind == np.uint8:
        return values
    if kind.kind == "f":
        return values.astype(kind)
    scale, zero_point = detail["quantization"]
    if kind not in (np.dtype(np.uint8), np.dtype(np.int8)) or not scale:
        raise ValueError(
            f"The model's input {detail['name']!r} is {kind} with scale {scale}; expected floats, "
            "or uint8 or int8 with a scale."
        )
    limits = np.iinfo(kind)
    codes = np.round(values / np.float32(scale)) + zero_point
    return np.clip(codes, limits.min, limits.max).astype(kind)


def dequantize(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """Converts values of a tensor to float32, by its scale and zero point where it has them."""
    scale, zero_point = detail["quantization"]
    if np.dtype(detail["dtype"]).kind == "f" or not scale:
        return values.astype(np.float32)
    return (values.astype(np.float32) - zero_point) * np.float32(scale)


def run(interpreter: Interpreter, images: np.ndarray, divide: float | None = None) -> np.ndarray:
    """Runs a model on images, in its static batch or one by one.

    Args:
        interpreter: An interpreter of a model with one input and one output `[batch, classes]`.
        images: Array as `load_array` returns it; see `prepare_images`.
        divide: What bytes are divided by; None: they go in as they are.

    Returns:
        float32 array `[count, classes]`.

    Raises:
        ValueError: If the model is no classifier of images, or does not run on these.
    """
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"Expected a model of one input and one output, got {len(inputs)} and {len(outputs)}."
        )
    if len(inputs[0]["shape_signature"]) < 2:
        raise ValueError(f"Expected an input [batch, ...], got {inputs[0]['shape_signature']}.")
    raw = np.dtype(inputs[0]["dtype"]) == np.uint8
    values = prepare_images(images, inputs[0]["shape_signature"], divide, raw)
    codes = quantize(values, inputs[0])
    size = max(1, int(inputs[0]["shape_signature"][0]))
    parts = []
    try:
        if tuple(inputs[0]["shape"]) != (size, *codes.shape[1:]):
            interpreter.resize_tensor_input(inputs[0]["index"], (size, *codes.shape[1:]))
            interpreter.allocate_tensors()
        for start in range(0, len(codes), size):
            # The last image fills up the last batch; what comes out for the copies is dropped.
            rows = np.minimum(np.arange(start, start + size), len(codes) - 1)
            interpreter.set_tensor(inputs[0]["index"], codes[rows])
            interpreter.invoke()
            parts.append(interpreter.get_tensor(outputs[0]["index"]))
    except RuntimeError as error:
        raise ValueError(f"The model does not run on these images: {error}") from error
    if parts[0].ndim != 2 or parts[0].shape[0] != size or parts[0].shape[1] < 2:
        raise ValueError(
            f"Expected an output [{size}, classes] of two classes or more, got "
            f"{list(parts[0].shape)}."
        )
    return dequantize(np.concatenate(parts)[: len(codes)], outputs[0])


def to_scores(outputs: np.ndarray) -> np.ndarray:
    """Turns logits `[count, classes]` into scores that sum to 1; probabilities are such already."""
    if (outputs >= 0).all() and (abs(outputs.sum(axis=1) - 1) < _SUM_TOLERANCE).all():
        return outputs
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def class_names(path: str) -> list[str]:
    """Returns the names of the classes that the file's metadata holds; none where it has none."""
    with open(path, "rb") as file:
        model = schema.Model.GetRootAs(file.read())
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == _NOTES:
            notes = json.loads(model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())
            return [str(name) for name in notes.get("class_names", [])]
    return []


def report(outputs: np.ndarray, labels: np.ndarray | None, top: int, names: list[str]) -> list[str]:
    """Returns one line for each image and, where labels are given, one with the accuracy."""
    scores = to_scores(outputs)
    order = np.argsort(-outputs, axis=1, kind="stable")
    lines = []
    for image, classes in enumerate(order[:, :top]):
        likeliest = "  ".join(
            f"{names[c] if c < len(names) else c} {scores[image, c]:.4f}" for c in classes
        )
        lines.append(f"{image}: {likeliest}")
    if labels is not None:
        if labels.shape != (len(outputs),) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"Expected one integer label for each of {len(outputs)} images, got "
                f"{labels.dtype} of shape {list(labels.shape)}."
            )
        right = int((order[:, 0] == labels).sum())
        lines.append(f"accuracy: {right / len(labels):.4f} ({right} of {len(labels)})")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Classifies images with a .tflite file.")
    parser.add_argument("model", help="the .tflite file")
    parser.add_argument("images", help="a .npy file: floats in the model's units, or bytes")
    parser.add_argument(
        "--divide", type=float, help="divide bytes by this: 255 for models of values in [0, 1]"
    )
    parser.add_argument("--labels", help="a .npy file with the true class of each image")
    parser.add_argument("--top", type=int, default=3, help="classes to print for each image")
    parser.add_argument("--threads", type=int, default=1, help="threads to run with")
    arguments = parser.parse_args()
    try:
        if arguments.top < 1:
            raise ValueError(f"--top must be at least 1, got {arguments.top}.")
        interpreter = load_interpreter(arguments.model, threads=arguments.threads)
        images = load_array(arguments.images)
        labels = load_array(arguments.labels) if arguments.labels else None
        if arguments.divide is not None and not arguments.divide > 0:
            raise ValueError(f"--divide must be above 0, got {arguments.divide}.")
        outputs = run(interpreter, images, arguments.divide)
        lines = report(outputs, labels, arguments.top, class_names(arguments.model))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{os.path.basename(sys.argv[0])}: error: {error}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
