# SPDX-License-Identifier: Apache-2.0
"""Export to .tflite: exact sparse weights, parity in the stock interpreter, honest failure."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from keras import layers

from tests.exporting import perceptron, prune, quick_export
from tfmot_atmc import export
from tfmot_atmc.export.tflite import flatbuffer


def lenet():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(20, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(50, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(500, activation="relu"),
            layers.Dense(10),
        ]
    )


def operators(path):
    model = flatbuffer.read_model(path.read_bytes())
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    return [
        names[flatbuffer.builtin_code(model, operator)]
        for subgraph in model.subgraphs
        for operator in subgraph.operators
    ]


def restored_weights(path):
    """What the interpreter itself unpacks: the results of DENSIFY and DEQUANTIZE, by shape."""
    interpreter = Interpreter(
        model_path=str(path),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    interpreter.invoke()
    model = flatbuffer.read_model(path.read_bytes())
    weighted = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED)
    return [
        interpreter.get_tensor(int(operator.inputs[1]))
        for operator in model.subgraphs[0].operators
        if flatbuffer.builtin_code(model, operator) in weighted
    ]


@pytest.mark.parametrize("values", ["auto", "float32"])
def test_the_interpreter_restores_dense_kernels_bit_for_bit(tmp_path, values):
    model = prune(perceptron(width=128), 0.1, grid=0.0123)
    path = tmp_path / "model.tflite"
    report = quick_export(model, path, values=values)
    kernels = [layer.kernel.numpy().T for layer in model.layers]
    weights = restored_weights(path)
    assert len(weights) == 3
    for kernel, weight in zip(kernels, weights, strict=True):
        np.testing.assert_array_equal(weight, kernel)
    stored = {tensor.dtype for tensor in report.tensors if tensor.shape == (128, 128)}
    assert stored == ({"int8"} if values == "auto" else {"float32"})
    assert ("DEQUANTIZE" in operators(path)) == (values == "auto")
    assert report.max_difference < 1e-6
    assert report.delegated_partitions == 1


def test_values_off_the_grid_stay_float32(tmp_path):
    path = tmp_path / "model.tflite"
    report = quick_export(prune(perceptron(), 0.1), path)
    assert {t.dtype for t in report.tensors if t.is_sparse} == {"float32"}
    assert "DEQUANTIZE" not in operators(path)


@pytest.mark.parametrize(("grid", "largest_file"), [(None, 32_500), (2.0**-9, 20_200)])
def test_a_lenet_of_one_percent_takes_the_bytes_it_should(tmp_path, grid, largest_file):
    model = prune(lenet(), 0.01, grid=grid)
    for layer in model.layers:
        if layer.weights:
            layer.bias.assign(np.linspace(-0.1, 0.1, layer.bias.shape[0]))
    path = tmp_path / "lenet.tflite"
    report = quick_export(model, path)
    assert report.bytes == path.stat().st_size < largest_file
    assert 1_700_000 < report.dense_bytes < 1_740_000
    assert report.gzip_bytes < report.bytes
    assert report.compression > 50
    assert report.delegated_partitions == 1
    assert report.label_agreement == 1.0
    kernels = [layer.kernel.numpy() for layer in model.layers if layer.weights]
    nonzeros = sorted(np.count_nonzero(kernel) for kernel in kernels)
    assert sorted(tensor.nonzeros for tensor in report.tensors) == nonzeros
    # Everything but weights and biases fits in little.
    assert report.bytes - sum(t.nbytes for t in report.tensors) - 4 * 580 < 3_500


@pytest.mark.parametrize(
    ("grid", "batch_size", "use_bias"),
    [(None, 1, True), (None, 3, True), (0.0123, 1, True), (0.0123, 3, False)],
)
def test_wide_dense_layers_become_convolutions_with_narrow_indices(
    tmp_path, grid, batch_size, use_bias
):
    wide = layers.Dense(64, activation="relu", bias_initializer="ones", use_bias=use_bias)
    model = prune(keras.Sequential([keras.Input((600,)), wide, layers.Dense(5)]), 0.2, grid=grid)
    path = tmp_path / "wide.tflite"
    report = quick_export(model, path, batch_size=batch_size)
    (kernel,) = [tensor for tensor in report.tensors if len(tensor.shape) == 4]
    assert kernel.shape == (64, 1, 3, 200)
    assert kernel.index_bytes == kernel.nonzeros == np.count_nonzero(wide.kernel)
    assert [o for o in operators(path) if o not in ("DENSIFY", "DEQUANTIZE")] == [
        "RESHAPE",
        "CONV_2D",
        "FULLY_CONNECTED",
    ]
    weight = restored_weights(path)[0]
    np.testing.assert_array_equal(weight.reshape(64, 600), wide.kernel.numpy().T)
    assert report.delegated_partitions == 1
    assert report.max_difference < 1e-6


@pytest.mark.parametrize(
    ("inputs", "options", "batch_size"),
    [(600, {}, None), (521, {}, 1), (256, {}, 1)],
)
def test_dense_layers_that_cannot_become_convolutions_stay(tmp_path, inputs, options, batch_size):
    options = {"bias_initializer": "ones"} | options
    model = prune(keras.Sequential([keras.Input((inputs,)), layers.Dense(64, **options)]), 0.2)
    path = tmp_path / "wide.tflite"
    report = quick_export(model, path, batch_size=batch_size)
    assert report.num_sparse == 1
    assert "CONV_2D" not in operators(path)


def test_a_wide_kernel_used_twice_keeps_its_shape(tmp_path):
    shared = layers.Dense(64, bias_initializer="ones")
    inputs = [keras.Input((600,)), keras.Input((600,))]
    model = keras.Model(inputs, layers.Multiply()([shared(inputs[0]), shared(inputs[1])]))
    path = tmp_path / "shared.tflite"
    assert quick_export(prune(model, 0.1), path).num_sparse == 1
    assert operators(path).count("FULLY_CONNECTED") == 2


def residual_network():
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(32, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    shortcut = x
    x = layers.Conv2D(32, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(32, 3, padding="same", use_bias=False)(x)
    x = layers.Add()([layers.BatchNormalization()(x), shortcut])
    outputs = layers.Dense(7)(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
    return keras.Model(inputs, outputs)


def test_batch_normalisation_is_folded_and_the_kernels_stay_sparse(tmp_path):
    model = prune(residual_network(), 0.08)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    path = tmp_path / "residual.tflite"
    report = quick_export(model, path)
    assert report.num_sparse == 4
    assert sorted(t.nonzeros for t in report.tensors) == sorted(
        np.count_nonzero(v) for v in model.trainable_variables if len(v.shape) > 1
    )
    assert report.delegated_partitions == 1
    assert "MUL" not in operators(path)


def test_depthwise_networks_are_exported(tmp_path):
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10)
    prune(model, 0.1)
    path = tmp_path / "mobilenet.tflite"
    report = quick_export(model, path)
    assert report.num_sparse > 30
    assert report.compression > 3
    assert operators(path).count("DENSIFY") == report.num_sparse
    assert report.label_agreement == 1.0


def test_depthwise_kernels_are_stored_sparsely(tmp_path):
    model = keras.Sequential(
        [keras.Input((8, 8, 256)), layers.DepthwiseConv2D(5, padding="same"), layers.Flatten()]
    )
    path = tmp_path / "depthwise.tflite"
    report = quick_export(prune(model, 0.05), path)
    assert operators(path)[:2] == ["DENSIFY", "DEPTHWISE_CONV_2D"]
    assert report.num_sparse == 1


def test_one_dimensional_convolutions_are_exported(tmp_path):
    model = keras.Sequential(
        [keras.Input((40, 6)), layers.Conv1D(64, 5, activation="relu"), layers.Conv1D(32, 3)]
    )
    report = quick_export(prune(model, 0.05), tmp_path / "conv1d.tflite")
    assert report.num_sparse == 2
    assert report.bytes < 0.5 * report.dense_bytes


def two_inputs():
    # The names sort against the order of the arguments.
    image, code = keras.Input((8, 8, 2), name="picture"), keras.Input((20,), name="code")
    x = layers.Flatten()(layers.Conv2D(24, 3)(image))
    x = layers.Concatenate()([x, layers.Dense(32)(code)])
    return keras.Model([image, code], [layers.Dense(4)(x), layers.Dense(3)(x)])


def test_several_inputs_and_outputs_keep_names_and_order(tmp_path):
    model = prune(two_inputs(), 0.1)
    path = tmp_path / "two.tflite"
    rng = np.random.default_rng(0)
    picture = rng.random((5, 8, 8, 2), np.float32)
    code = rng.random((5, 20), np.float32)
    report = quick_export(model, path, inputs={"code": code, "picture": picture})
    assert report.examples == 5
    runner = export.TFLiteModel(path)
    assert runner.input_names == ["picture", "code"]
    assert runner.output_names == ["output_0", "output_1"]
    for output, reference in zip(runner(picture, code), model([picture, code]), strict=True):
        np.testing.assert_allclose(output, reference, atol=1e-5)
    signature = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    outputs = signature(picture=picture[:1], code=code[:1])
    np.testing.assert_allclose(outputs["output_1"], runner(picture, code)[1][:1], atol=1e-6)


def test_dictionaries_name_inputs_and_outputs(tmp_path):
    inputs = {"b": keras.Input((6,), name="b"), "a": keras.Input((4,), name="a")}
    left, right = layers.Dense(5)(inputs["a"]), layers.Dense(7)(inputs["b"])
    model = keras.Model(inputs, {"right": right, "left": left})
    path = tmp_path / "dictionary.tflite"
    quick_export(model, path)
    runner = export.TFLiteModel(path)
    assert runner.input_names == ["a", "b"]
    assert runner.output_names == ["left", "right"]
    a, b = np.ones((3, 4), np.float32), np.ones((3, 6), np.float32)
    np.testing.assert_allclose(runner(a, b)[0], model({"a": a, "b": b})["left"], atol=1e-6)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = keras.Sequential([layers.Dense(64, activation="relu"), layers.Dense(4)])

    def call(self, x, training=None):
        return self.inner(x, training=training)


def test_subclassed_and_nested_models_are_exported(tmp_path):
    model = Subclassed()
    with pytest.raises(ValueError, match="not built"):
        quick_export(model, tmp_path / "model.tflite")
    model(np.zeros((2, 32), np.float32))
    report = quick_export(prune(model, 0.05), tmp_path / "model.tflite")
    assert report.num_sparse == 2
    inputs = np.random.default_rng(0).random((3, 32), np.float32)
    assert quick_export(model, tmp_path / "model.tflite", inputs=inputs).examples == 3


def test_mixed_precision_is_exported_in_float32_and_restored(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = prune(perceptron(), 0.1)
    finally:
        keras.config.set_dtype_policy("float32")
    path = tmp_path / "mixed.tflite"
    report = quick_export(model, path)
    assert report.max_difference < 1e-6
    assert "CAST" not in operators(path)
    assert {layer.dtype_policy.name for layer in model.layers} == {"mixed_float16"}


def test_extreme_sparsity_runs(tmp_path):
    model = perceptron(width=128)
    for layer, keep in zip(model.layers, (None, 0, 3), strict=True):
        kernel = np.zeros(layer.kernel.shape, np.float32)
        if keep is not None:
            kernel.flat[keep] = 2.0
        layer.kernel.assign(kernel)
        layer.bias.assign(np.linspace(0.1, 1.0, layer.bias.shape[0]))
    path = tmp_path / "model.tflite"
    report = quick_export(model, path)
    assert report.num_sparse == 3
    assert sorted(tensor.nonzeros for tensor in report.tensors) == [0, 1, 1]
    for layer, weight in zip(model.layers, restored_weights(path), strict=True):
        np.testing.assert_array_equal(weight, layer.kernel.numpy().T)


def test_nothing_sparse_gives_a_dense_file_and_says_so(tmp_path):
    path = tmp_path / "dense.tflite"
    report = quick_export(perceptron(), path)
    assert report.num_sparse == 0
    assert "DENSIFY" not in operators(path)
    assert "the file is dense" in str(report)
    assert report.bytes <= report.dense_bytes


def test_sparse_storage_can_be_switched_off_and_needs_the_sparsity_asked_for(tmp_path):
    model = prune(perceptron(), 0.3)
    path = tmp_path / "model.tflite"
    assert quick_export(model, path).num_sparse > 0
    assert quick_export(model, path, sparse=False).num_sparse == 0
    assert quick_export(model, path, min_sparsity=0.8).num_sparse == 0


def test_a_kernel_used_by_two_operators_is_stored_once(tmp_path):
    shared = layers.Dense(96)
    inputs = [keras.Input((96,)), keras.Input((96,))]
    model = keras.Model(inputs, layers.Subtract()([shared(inputs[0]), shared(inputs[1])]))
    path = tmp_path / "shared.tflite"
    report = quick_export(prune(model, 0.1), path)
    assert report.num_sparse == 1
    assert operators(path).count("DENSIFY") == 1


@pytest.mark.parametrize("batch_size", [4, None])
def test_batches_are_static_or_dynamic(tmp_path, batch_size):
    model = prune(
        keras.Sequential([keras.Input((28, 28, 1)), layers.Conv2D(8, 9), layers.Flatten()]), 0.1
    )
    path = tmp_path / "batch.tflite"
    quick_export(model, path, batch_size=batch_size)
    runner = export.TFLiteModel(path)
    assert runner.batch_size == batch_size
    images = np.random.default_rng(0).random((6, 28, 28, 1), np.float32)
    (outputs,) = runner(images)
    np.testing.assert_allclose(outputs, model(images), atol=1e-5)
    with pytest.raises(ValueError, match="input"):
        runner(images, images)


def test_integer_inputs_and_embeddings_are_exported(tmp_path):
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(50, 8)(inputs))
    model = prune(keras.Model(inputs, layers.Dense(64)(x)), 0.1)
    report = quick_export(model, tmp_path / "text.tflite")
    # The embedding is read by GATHER, which cannot read sparse storage.
    assert report.num_sparse == 1


def test_equal_models_give_equal_files(tmp_path):
    first, second = tmp_path / "a.tflite", tmp_path / "b.tflite"
    quick_export(prune(perceptron(), 0.1), first)
    quick_export(prune(perceptron(), 0.1), second)
    assert first.read_bytes() == second.read_bytes()
