# SPDX-License-Identifier: Apache-2.0
"""What C code of a network would need if only a share of its weights were left."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmot_atmc.export.c.camera import byte_input
from tfmot_atmc.export.c.emitting import emit
from tfmot_atmc.export.c.lowering import lower
from tfmot_atmc.export.c.planning import plan_network
from tfmot_atmc.export.c.reading import read_network
from tfmot_atmc.export.c.sizes import Footprint, allowed_footprint, measure_footprint
from tfmot_atmc.export.tflite.checks import calibration_samples, check_model
from tfmot_atmc.export.tflite.conversion import convert, describe_inputs

__all__ = ["FootprintPredictor"]

_WEIGHTED = ("conv", "depthwise", "dense")


class FootprintPredictor:
    """Predicts flash and RAM of the C code of a pruned model, before it is trained.

    The model is converted once. For each ratio, random weights are left out of all kernels alike,
    and the code is written and, where a cross-compiler is installed, compiled.

    Args:
        model: a plain Keras model of one input and one output.
        representative: some training examples.
        cpu: the core; see `export_c`.
        pixel_max: what the byte 255 means to the model where the C function shall take bytes; see
            `export_c`.

    Raises:
        ExportError: if the model has an operator without a kernel.
        ValueError: if the examples do not fit the model.
    """

    def __init__(
        self, model: keras.Model, representative: Any, cpu: str, pixel_max: float | None = None
    ) -> None:
        check_model(model)
        samples = calibration_samples(describe_inputs(model, representative, 1), representative)
        self._bytes_in, inner = byte_input(model, pixel_max)
        if self._bytes_in is not None:
            samples = [self._bytes_in.rescale(sample) for sample in samples]
        self._data = convert(inner, describe_inputs(inner, samples, 1), samples)
        self._cpu = cpu

    def __call__(self, ratio: float) -> tuple[Footprint, ...]:
        """Returns what is needed at each level of the compiler, the fastest first.

        Args:
            ratio: the share of weights that are left in each kernel, in [0, 1]; one at least.
        """
        network = read_network(self._data)
        rng = np.random.default_rng(0)
        for operation in network.operations:
            kernel = operation.inputs[1] if operation.kind in _WEIGHTED else None
            if kernel is not None and kernel.data is not None:
                rows, columns = operation.dilation
                weights = (
                    kernel.data[:, ::rows, ::columns] if kernel.data.ndim == 4 else kernel.data
                )
                kept = max(1, round(ratio * weights.size))
                mask = rng.permutation(weights.size).reshape(weights.shape) < kept
                # A weight that is zero already counts as one that could be trained.
                values = (np.where(weights == 0, 1, weights) * mask).astype(weights.dtype)
                kernel.data = np.zeros_like(kernel.data)
                if kernel.data.ndim == 4:
                    kernel.data[:, ::rows, ::columns] = values
                else:
                    kernel.data[:] = values
        plan = plan_network(network, convert_input=self._bytes_in is not None)
        source = emit(lower(plan), "model", "", bytes_in=self._bytes_in)
        with tempfile.TemporaryDirectory(prefix="atmc-") as folder:
            draft = Path(folder) / "model.c"
            draft.write_text(source.code)
            draft.with_suffix(".h").write_text(source.header)
            measured = [measure_footprint(draft, self._cpu, level) for level in ("-O2", "-Os")]
        found = tuple(footprint for footprint in measured if footprint is not None)
        data = source.weight_bytes + source.table_bytes
        return found or (allowed_footprint(self._cpu, data, source.static_bytes),)
