# SPDX-License-Identifier: Apache-2.0
"""Settings and data that all tests share."""

import gc
import os

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib
import pytest

matplotlib.use("Agg")

# Graphs are made of very many small objects: at Python's thresholds, a tenth of the processor
# time of the training tests went into looking for cycles among them.
gc.set_threshold(200_000, 50, 1000)

# What takes longest goes first: a file is run by one process, and the last one to be begun decides
# when all are done.
SLOWEST = (
    "test_examples.py",
    "test_training.py",
    "test_docs.py",
    "test_resume.py",
    "test_wrapping.py",
    "test_cli.py",
    "test_cli_budget.py",
)


def pytest_collection_modifyitems(items):
    """Orders the files, those of `SLOWEST` first; within a file the order stays."""
    place = {name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(SLOWEST)))


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
