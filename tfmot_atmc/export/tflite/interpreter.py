# SPDX-License-Identifier: Apache-2.0
"""Runs .tflite models in the stock LiteRT interpreter and measures their latency."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

_RUN_SECONDS = 0.01
_TOTAL_SECONDS = 2.0
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 15
_DELEGATE_OPERATOR = "DELEGATE"


class TFLiteModel:
    """A .tflite model with one signature, callable on batches of NumPy arrays.

    A model with a static batch is run in slices; the last slice is padded by repeating its last
    example, and the padding's outputs are dropped. A model with a dynamic batch runs at once.

    Args:
        model: path of a .tflite file, or its content as bytes.
        delegates: whether the interpreter may apply its default delegates (XNNPACK).
        num_threads: threads to run with.

    Raises:
        ValueError: if the interpreter does not accept the model.

    Attributes:
        input_names: names of the inputs, in the order of positional arguments.
        output_names: names of the outputs, in the order in which they are returned.
    """

    def __init__(
        self, model: str | os.PathLike[str] | bytes, *, delegates: bool = True, num_threads: int = 1
    ):
        resolver = (
            OpResolverType.AUTO if delegates else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        )
        source: dict[str, Any] = (
            {"model_content": model}
            if isinstance(model, bytes)
            else {"model_path": os.fspath(model)}
        )
        try:
            self._interpreter = Interpreter(
                num_threads=num_threads, experimental_op_resolver_type=resolver, **source
            )
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"The interpreter does not accept the model: {error}") from error
        self._inputs, self._outputs = self._tensors_by_name()
        self.input_names = list(self._inputs)
        self.output_names = list(self._outputs)

    def _tensors_by_name(self) -> tuple[dict[str, Any], dict[str, Any]]:
        inputs = self._interpreter.get_input_details()
        outputs = self._interpreter.get_output_details()
        signatures = self._interpreter.get_signature_list()
        if not signatures:
            return ({d["name"]: d for d in inputs}, {d["name"]: d for d in outputs})
        runner = self._interpreter.get_signature_runner(next(iter(signatures)))
        by_index = {d["index"]: d for d in (*inputs, *outputs)}
        named = []
        for details in (runner.get_input_details(), runner.get_output_details()):
            named.append({name: by_index[d["index"]] for name, d in details.items()})
        # The signature sorts its names; the file's order is the one that callers know.
        order = [d["index"] for d in (*inputs, *outputs)]
        sort = [
            sorted(names.items(), key=lambda item: order.index(item[1]["index"])) for names in named
        ]
        return dict(sort[0]), dict(sort[1])

    @property
    def batch_size(self) -> int | None:
        """The static batch size, or None where the batch is dynamic."""
        signature = next(iter(self._inputs.values()))["shape_signature"]
        return None if len(signature) == 0 or signature[0] < 0 else int(signature[0])

    @property
    def num_delegated_partitions(self) -> int:
        """How many parts of the graph a delegate took over; 1 is a model delegated in one piece."""
        # The interpreter has no public listing of its operators.
        details = self._interpreter._get_ops_details()
        return sum(operator["op_name"] == _DELEGATE_OPERATOR for operator in details)

    def set_inputs(self, *inputs: np.ndarray) -> None:
        """Sets one array per input; their batch must be the static one, if there is one."""
        if len(inputs) != len(self._inputs):
            raise ValueError(
                f"The model has the inputs {self.input_names}. Received {len(inputs)} arrays."
            )
        resized = False
        details = list(self._inputs.values())
        for array, detail in zip(inputs, details, strict=True):
            current = self._interpreter.get_input_details()
            shape = next(d["shape"] for d in current if d["index"] == detail["index"])
            if tuple(shape) != array.shape:
                self._interpreter.resize_tensor_input(detail["index"], array.shape, strict=True)
                resized = True
        if resized:
            self._interpreter.allocate_tensors()
        for array, detail in zip(inputs, details, strict=True):
            self._interpreter.set_tensor(detail["index"], _stored(array, detail))

    def invoke(self) -> None:
        """Runs the model once on the inputs that were set."""
        self._interpreter.invoke()

    def __call__(self, *inputs: Any) -> list[np.ndarray]:
        """Runs the model on a batch of any size.

        Args:
            *inputs: one array `[batch, ...]` per input, in the order of `input_names`.

        Returns:
            One array `[batch, ...]` per output, in the order of `output_names`.

        Raises:
            ValueError: if the number of arrays or their shapes do not fit the model.
        """
        arrays = [np.asarray(array) for array in inputs]
        if not arrays or any(array.ndim == 0 for array in arrays):
            raise ValueError(f"Expected one batch for each of {self.input_names}.")
        total = len(arrays[0])
        size = self.batch_size or total
        if total == 0 or any(len(array) != total for array in arrays):
            raise ValueError(
                f"Expected as many examples in every input and at least one. Received "
                f"{[len(array) for array in arrays]}."
            )
        slices = []
        for start in range(0, total, size):
            rows = np.minimum(np.arange(start, start + size), total - 1)
            try:
                self.set_inputs(*(array[rows] for array in arrays))
                self.invoke()
            except RuntimeError as error:
                raise ValueError(f"The model does not run on these inputs: {error}") from error
            slices.append(
                [_real(self._interpreter.get_tensor(d["index"]), d) for d in self._outputs.values()]
            )
        return [np.concatenate(parts)[:total] for parts in zip(*slices, strict=True)]


def _stored(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """Floats as the integers that a quantised input takes; other arrays in the input's type."""
    dtype, (scale, zero_point) = np.dtype(detail["dtype"]), detail["quantization"]
    if scale and np.issubdtype(dtype, np.integer) and np.issubdtype(array.dtype, np.floating):
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(array / scale) + zero_point, limits.min, limits.max)
    return array.astype(dtype, copy=False)


def _real(array: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """What a quantised output stands for, as float32; other outputs as they are."""
    scale, zero_point = detail["quantization"]
    if not scale or not np.issubdtype(array.dtype, np.integer):
        return array
    return (array.astype(np.float32) - zero_point) * np.float32(scale)


def measure_latency(
    models: Mapping[str, str | os.PathLike[str] | bytes],
    inputs: Sequence[np.ndarray] | Mapping[str, Sequence[np.ndarray]],
    *,
    rounds: int | None = None,
    num_threads: int = 1,
) -> dict[str, float]:
    """Measures the latency of models in turns, so that a busy machine slows all of them alike.

    Each round runs every model for about 10 ms (at least once), in an order of its own. Each run is
    timed by itself: the median is then hardly moved by the few in which another process ran.

    Args:
        models: path or content of each .tflite model, by name.
        inputs: one array per input, of the batch to time; or such a list for each model, by name.
        rounds: number of rounds; the median over the runs of all of them is reported. By default
            15, and as few as 5 where a round takes long.
        num_threads: threads of the interpreter.

    Returns:
        Milliseconds per invocation, by name.
    """
    loaded = {name: TFLiteModel(model, num_threads=num_threads) for name, model in models.items()}
    repeats = {}
    round_seconds = 0.0
    for name, model in loaded.items():
        model.set_inputs(*(inputs[name] if isinstance(inputs, Mapping) else inputs))
        model.invoke()
        start = time.perf_counter()
        model.invoke()
        elapsed = time.perf_counter() - start
        repeats[name] = max(1, int(_RUN_SECONDS / max(elapsed, 1e-6)))
        round_seconds += max(elapsed, _RUN_SECONDS)
    if rounds is None:
        rounds = int(np.clip(_TOTAL_SECONDS / round_seconds, _FEWEST_ROUNDS, _MOST_ROUNDS))
    times: dict[str, list[float]] = {name: [] for name in loaded}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(loaded)):
            for _ in range(repeats[name]):
                start = time.perf_counter()
                loaded[name].invoke()
                times[name].append(time.perf_counter() - start)
    return {name: float(np.median(measured)) * 1e3 for name, measured in times.items()}
