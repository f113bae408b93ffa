# SPDX-License-Identifier: Apache-2.0
"""Callbacks: planning and finishing compression, and summaries for TensorBoard."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.compression.adversarial_callbacks import CatastrophicOverfitting, KeepPerturbations
from tfmot_atmc.compression.planning import CompressionCallback, UpdateCompression
from tfmot_atmc.constraints.codebook import Codebook

__all__ = [
    "CatastrophicOverfitting",
    "CompressionSummaries",
    "KeepPerturbations",
    "UpdateCompression",
]


def __dir__() -> list[str]:
    return __all__


class CompressionSummaries(CompressionCallback):
    """Writes nonzeros, sparsity, codebooks, ADMM residuals and robust accuracy for TensorBoard.

    Args:
        log_dir: folder for the event files.
        update_freq: `"epoch"`, or a number of batches between two summaries.
    """

    def __init__(self, log_dir: str | os.PathLike[str] = "logs", update_freq: str | int = "epoch"):
        super().__init__()
        if update_freq != "epoch" and (not isinstance(update_freq, int) or update_freq < 1):
            raise ValueError(
                f"`update_freq` must be 'epoch' or a number of batches. Received {update_freq!r}."
            )
        self.log_dir, self.update_freq = os.fspath(log_dir), update_freq
        self._writer: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the event file."""
        self._compressed()
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "CompressionSummaries needs TensorBoard. Install it with "
                "`pip install tfmot-atmc[tensorboard]`, or leave the callback out."
            )
        self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a summary every `update_freq` batches."""
        if self.update_freq != "epoch" and (batch + 1) % int(self.update_freq) == 0:
            self._write(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a summary, with the epoch's metrics."""
        self._write(logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event file."""
        self._writer.close()

    def _write(self, logs: dict[str, Any] | None) -> None:
        model = self._compressed()
        report = model.compression_report()
        with self._writer.as_default(step=model.step):
            tf.summary.scalar("compression/nonzeros", report.nonzeros)
            tf.summary.scalar("compression/paper_ratio", report.paper_ratio)
            for factor in report.factors:
                size = int(np.prod(factor.shape))
                tf.summary.scalar(f"nonzeros/{factor.name}", factor.nonzeros)
                tf.summary.scalar(f"sparsity/{factor.name}", 1 - factor.nonzeros / max(size, 1))
                tf.summary.scalar(f"distinct/{factor.name}", factor.distinct)
            for constraint in model.constraints:
                for name, value in constraint.scalars().items():
                    tf.summary.scalar(f"constraint/{name}", value)
                if isinstance(constraint, Codebook):
                    for name, values in constraint.codebooks().items():
                        tf.summary.histogram(f"codebook/{name}", values)
            for name, value in (logs or {}).items():
                if "robust" in name:
                    tf.summary.scalar(f"robustness/{name}", float(value))
        self._writer.flush()
