# SPDX-License-Identifier: Apache-2.0
"""What an export reports, and what it refuses: clear errors, and no file left behind."""

import json
import os
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.exporting import perceptron, prune, quick_export
from tfmot_atmc import export
from tfmot_atmc.export.tflite import export as tflite_module
from tfmot_atmc.export.tflite import flatbuffer, rewrite

DENSE_OPTIONS = flatbuffer.schema.BuiltinOptions.FullyConnectedOptions


def test_the_report_prints_and_saves(tmp_path):
    report = export.export_tflite(prune(perceptron(), 0.1), tmp_path / "model.tflite")
    assert report.latency_ms > 0 and report.dense_latency_ms > 0
    text = str(report)
    assert f"{report.bytes:,} bytes" in text
    lines = text.splitlines()
    assert max(map(len, lines[3:])) <= 100
    for tensor in report.tensors:  # one row each, whose long name goes on below
        shape = "x".join(map(str, tensor.shape))
        rows = [line for line in lines if f" {shape} " in line and f" {tensor.nonzeros} (" in line]
        assert len(rows) == 1 and tensor.name.startswith(rows[0].split()[0])
    assert "slimmed from 5,573 to" in text and "entropy bound" in text
    assert report.overhead_bytes + sum(t.nbytes for t in report.tensors) == report.bytes
    assert 0 < report.entropy_bytes < report.bytes - report.overhead_bytes
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["bytes"] == report.bytes
    assert saved["compression"] == pytest.approx(report.compression)
    assert [tensor["nonzeros"] for tensor in saved["tensors"]] == [
        tensor.nonzeros for tensor in report.tensors
    ]
    assert sorted(os.listdir(tmp_path)) == ["model.tflite", "report.json"]


def test_inspection_reads_what_the_converter_writes(tmp_path):
    model = prune(perceptron(), 0.02)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    plain = tmp_path / "plain.tflite"
    plain.write_bytes(converter.convert())
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
    packed = tmp_path / "packed.tflite"
    packed.write_bytes(converter.convert())
    expected = sorted(np.count_nonzero(layer.kernel) for layer in model.layers)
    for path in (plain, packed):
        kernels = [t for t in export.inspect_tflite(path) if len(t.shape) == 2]
        assert sorted(t.nonzeros for t in kernels) == expected
        assert all(t.name for t in kernels)
    assert any(t.is_sparse and t.index_bytes for t in export.inspect_tflite(packed))
    assert "dense" in export.format_tensors(export.inspect_tflite(plain))


def test_files_that_are_not_models_are_refused(tmp_path):
    path = tmp_path / "model.tflite"
    quick_export(prune(perceptron(), 0.1), path)
    content = path.read_bytes()
    for damaged in (b"", b"PK\x03\x04 not a model", content[:100], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="model.tflite"):
            export.inspect_tflite(path)
        with pytest.raises(ValueError, match="interpreter"):
            export.TFLiteModel(path)
    with pytest.raises(FileNotFoundError):
        export.inspect_tflite(tmp_path / "missing.tflite")


def test_dense_layers_of_damaged_shapes_are_left_as_they_are(tmp_path):
    converter = tf.lite.TFLiteConverter.from_keras_model(prune(perceptron(), 0.1))
    content = converter.convert()
    for shapes in ((None, (16, 1, 8, 8), ()), ((16,), (16, 1, 8, 8), None)):
        model = flatbuffer.read_model(content)
        (subgraph,) = model.subgraphs
        dense = next(o for o in subgraph.operators if o.builtinOptionsType == DENSE_OPTIONS)
        indices = (dense.inputs[0], dense.inputs[1], dense.outputs[0])
        for index, shape in zip(indices, shapes, strict=True):
            if shape is not None:
                subgraph.tensors[int(index)].shape = np.array(shape, np.int32)
        count = len(subgraph.operators)
        rewrite.sparsify_weights(model, min_sparsity=1.1)
        assert len(subgraph.operators) == count


def test_wrong_arguments_are_refused_before_any_work(tmp_path):
    model = perceptron()
    path = tmp_path / "model.tflite"
    with pytest.raises(ValueError, match=r"\.tflite"):
        quick_export(model, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="does not exist"):
        quick_export(model, tmp_path / "missing" / "model.tflite")
    with pytest.raises(TypeError, match=r"keras\.Model"):
        quick_export(layers.Dense(3), path)
    for options in (
        {"min_sparsity": 1.5},
        {"values": "int3"},
        {"batch_size": 0},
        {"tolerance": 0.0},
        {"inputs": np.zeros((3, 17, 2), np.float32)},
        {"inputs": [np.zeros((3, 16)), np.zeros((3, 16))]},
    ):
        with pytest.raises(ValueError, match="must|inputs"):
            quick_export(model, path, **options)
    path.write_bytes(b"kept")
    with pytest.raises(FileExistsError):
        quick_export(model, path, overwrite=False)
    assert path.read_bytes() == b"kept"


def test_wrapped_models_and_open_shapes_are_refused(tmp_path):
    path = tmp_path / "model.tflite"
    wrapped = perceptron()
    wrapped.compression_report = types.MethodType(lambda self: None, wrapped)
    with pytest.raises(ValueError, match="strip_compression"):
        quick_export(wrapped, path)
    free = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3)])
    with pytest.raises(ValueError, match="open shape"):
        quick_export(free, path)
    quick_export(free, path, inputs=np.zeros((2, 9, 9, 3), np.float32))
    fixed = keras.Sequential([keras.Input((4,), batch_size=3), layers.Dense(2)])
    with pytest.raises(ValueError, match="batch_size=3"):
        quick_export(fixed, path)
    assert quick_export(fixed, path, batch_size=3).examples == 16


class Unconvertible(layers.Layer):
    def call(self, x):
        return tf.raw_ops.Betainc(a=x, b=x, x=tf.clip_by_value(x, 0.0, 1.0))


def test_models_that_the_converter_rejects_leave_no_file(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Unconvertible()])
    with pytest.raises(export.ExportError, match="(?s)converter rejects.*Betainc"):
        quick_export(model, tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == []


def test_a_file_that_does_not_match_is_not_kept(tmp_path, monkeypatch):
    model = prune(perceptron(), 0.1)
    path = tmp_path / "model.tflite"
    quick_export(model, path)
    before = path.read_bytes()
    for layer in model.layers:
        layer.kernel.assign(3.0 * layer.kernel)
    with pytest.raises(export.ExportError, match="tolerance"):
        quick_export(model, path, tolerance=1e-12)
    rewrite = tflite_module._rewrite
    monkeypatch.setattr(tflite_module, "_rewrite", lambda *a: (rewrite(*a)[0][:2000], {}))
    with pytest.raises(export.ExportError, match="does not run"):
        quick_export(model, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.tflite"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        quick_export(prune(perceptron(), 0.1), tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == []


def test_a_model_that_is_not_finite_is_not_exported(tmp_path):
    model = perceptron()
    model.layers[0].bias.assign(np.full(64, np.inf, np.float32))
    with pytest.raises(export.ExportError, match="not finite"):
        quick_export(model, tmp_path / "model.tflite")
