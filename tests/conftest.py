# SPDX-License-Identifier: Apache-2.0
"""Settings and data that all tests share."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _reproducible():
    """Fixes the seeds of Python, NumPy and TensorFlow, and restarts the layers' name counters."""
    # Collecting garbage too would cost half a second for each of the many small tests.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(117)


@pytest.fixture(scope="session")
def mnist():
    """MNIST, where it is prepared for tensorflow-datasets; it is never downloaded for a test."""
    tfds = pytest.importorskip("tensorflow_datasets")
    if not tfds.builder("mnist").info.splits:
        pytest.skip("MNIST is not prepared: set TFDS_DATA_DIR to a folder that has it")
    from tfmot_atmc import datasets

    return datasets.load("mnist")
