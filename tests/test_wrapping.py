# SPDX-License-Identifier: Apache-2.0
"""Which layers of which models are compressed, what is left alone and why, and saving."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from tfmot_atmc import compress, compression_scope, strip_compression
from tfmot_atmc.compression.compress import CompressedModel

layers = keras.layers
PACKAGE = "test_wrapping"


def _sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(3, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(4),
        ],
        name="sequential_one",
    )


def _functional():
    x = keras.Input((8, 8, 1))
    y = layers.Conv2D(2, 3, padding="same")(x)
    y = layers.Add()([y, layers.Conv2D(2, 1)(x)])
    return keras.Model(x, layers.Dense(4)(layers.Flatten()(y)))


def _nested():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="same")], name="inner")
    x = keras.Input((8, 8, 1))
    y = layers.Dense(6, name="same")(layers.Flatten()(x))
    return keras.Model(x, layers.Dense(4)(inner(inner(y))))


def _shared():
    shared = layers.Dense(64, name="twice")
    x = keras.Input((8, 8, 1))
    return keras.Model(x, layers.Dense(4)(shared(shared(layers.Flatten()(x)))))


@keras.saving.register_keras_serializable(package=PACKAGE)
class Subclassed(keras.Model):
    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.flatten = layers.Flatten()
        self.blocks = [layers.Dense(6, activation="relu"), layers.Dropout(0.1)]
        self.head = layers.Dense(units)

    def call(self, inputs, training=None):
        x = self.flatten(inputs)
        for block in self.blocks:
            x = block(x, training=training) if isinstance(block, layers.Dropout) else block(x)
        return self.head(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def _subclassed():
    model = Subclassed()
    model(np.zeros((1, 8, 8, 1)))
    return model


MODELS = {
    "sequential": (_sequential, 2),
    "functional": (_functional, 3),
    "nested": (_nested, 3),
    "shared": (_shared, 2),
    "subclassed": (_subclassed, 2),
}
X = np.random.default_rng(0).uniform(size=(5, 8, 8, 1)).astype(np.float32)


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_starts_from_its_own_outputs(kind):
    make, number = MODELS[kind]
    model = make()
    before, expected = [w.copy() for w in model.get_weights()], model(X).numpy()
    small = compress(model, "atmc", ratio=1.0, schedule="constant")
    assert len(small.kernels) == number
    assert len({kernel.name for kernel in small.kernels}) == number
    np.testing.assert_allclose(small(X), expected, rtol=1e-5, atol=1e-6)
    # The original is untouched, by training too.
    small.kernels[0].variables["V"].assign(0 * small.kernels[0].variables["V"])
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert "Compressed" not in "".join(type(layer).__name__ for layer in model.layers)


@pytest.mark.parametrize("kind", MODELS)
def test_stripping_restores_classes_names_and_gives_equal_outputs(kind):
    model = MODELS[kind][0]()
    small = compress(model, "atmc", ratio=0.3, bits=2)
    small.finalize()
    plain = strip_compression(small)
    assert type(plain) is type(model) and plain.name == model.name
    if kind != "subclassed":  # its own constructor counts anew
        assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    assert [type(layer) for layer in plain.layers] == [type(layer) for layer in model.layers]
    assert [w.name for w in plain.weights] == [w.name for w in model.weights]
    np.testing.assert_allclose(plain(X), small(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        plain.predict(X, verbose=0), small.predict(X, verbose=0), rtol=1e-5, atol=1e-6
    )
    assert small.compression_report().nonzeros == int(0.3 * small.dense_size)
    assert small.compression_report().max_distinct <= 4


def test_stripping_an_interrupted_model_still_satisfies_both_constraints():
    small = compress(_sequential(), "atmc", ratio=0.1, bits=2)
    strip_compression(small)
    values = small.finalized_factors()
    assert sum(np.count_nonzero(v) for v in values) == int(0.1 * small.dense_size)
    assert max(np.unique(v[v != 0]).size for v in values) <= 4
    # It is the result that is feasible; the model itself may go on.
    assert small.compression_report().nonzeros > int(0.1 * small.dense_size)


def test_report_says_what_was_touched_and_why_the_rest_was_not():
    x = keras.Input((8, 8, 2))
    y = layers.Conv2D(4, 3, groups=2, name="grouped")(x)
    y = layers.DepthwiseConv2D(3, name="depthwise")(y)
    y = layers.SeparableConv2D(2, 1, name="separable")(y)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.Conv2D(2, 1, name="frozen", trainable=False)(layers.ReLU()(y))
    y = layers.Dense(5, name="first")(layers.Flatten()(y))
    small = compress(keras.Model(x, layers.Dense(3, name="last")(y)), "atmc", ratio=0.5)
    report = small.compression_report()
    found = {layer.layer.split("/")[-1]: layer for layer in report.layers}
    assert {name: layer.action for name, layer in found.items()} == {
        "grouped": "compressed",
        "depthwise": "compressed",
        "separable": "left alone",
        "norm": "left alone",
        "frozen": "left alone",
        "first": "factorized",
        "last": "factorized",
    }
    assert "get_compressible_weights" in found["separable"].reason
    assert "normalisation" in found["norm"].reason
    assert "trainable=False" in found["frozen"].reason
    assert found["grouped"].type == "Conv2D" and found["grouped"].parameters == 36
    assert found["last"].parameters == 15
    text = str(report)
    assert "trainable=False" in text and "total:" in text
    assert report.to_dict()["dense_parameters"] == small.dense_size


def test_lora_shared_variables_and_quantized_layers_are_left_alone_with_a_reason():
    dense = layers.Dense(4, name="lora")
    tied = layers.Dense(8, name="tied", use_bias=False)
    copy = layers.Dense(8, name="copy", use_bias=False)
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(3, name="last")(dense(copy(tied(x)))))
    dense.enable_lora(2)
    copy._untrack_variable(copy._kernel)
    copy._tracker.unlock()
    copy._kernel = tied._kernel
    small = compress(model, "atmc", ratio=0.5, in_place=True)
    found = {layer.layer: layer for layer in small.compression_report().layers}
    assert "merge" in found["lora"].reason
    assert "shared with another layer" in found["tied"].reason
    assert "shared with another layer" in found["copy"].reason
    assert found["last"].action == "factorized"


def test_a_model_without_compressible_layers_is_refused_with_the_reasons():
    model = keras.Sequential([keras.Input((3,)), layers.BatchNormalization(name="norm")])
    with pytest.raises(ValueError, match="no compressible layer.*norm: normalisation"):
        compress(model, "atmc", ratio=0.5)
    frozen = _sequential()
    frozen.trainable = False
    with pytest.raises(ValueError, match="frozen"):
        compress(frozen, "atmc", ratio=0.5)
    with pytest.raises(ValueError, match="not built"):
        compress(keras.Sequential([layers.Dense(3)]), "atmc", ratio=0.5)
    with pytest.raises(ValueError, match="not built"):
        compress(Subclassed(), "atmc", ratio=0.5)
    with pytest.raises(TypeError, match="keras.Model"):
        compress("model", "atmc", ratio=0.5)


def test_a_model_that_cannot_be_rebuilt_is_refused_and_in_place_takes_it():
    class Stubborn(Subclassed):
        def __init__(self, needed):
            super().__init__()

        def get_config(self):
            return {}

    model = Stubborn(1)
    model(np.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="in_place=True"):
        compress(model, "atmc", ratio=0.5)
    small = compress(model, "atmc", ratio=0.5, in_place=True)
    assert small.model is model and len(small.kernels) == 2


@keras.saving.register_keras_serializable(package=PACKAGE)
class Scale(layers.Layer):
    """A layer of the user's own, with one large and one small weight."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 5), name="matrix")
        self.offset = self.add_weight(shape=(5,), name="offset")

    def call(self, inputs):
        return keras.ops.matmul(inputs, self.matrix) + self.offset

    def get_compressible_weights(self):
        return [self.matrix]


@keras.saving.register_keras_serializable(package=PACKAGE)
class Doubled(layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


def test_custom_layers_and_subclasses_of_dense_keep_their_own_call():
    x = keras.Input((8,))
    model = keras.Model(x, Doubled(3, name="double")(Scale(name="scale")(x)))
    inputs = X.reshape(5, -1)[:, :8]
    small = compress(model, "atmc", ratio=0.4, schedule="constant")
    start = small(inputs, training=True)
    np.testing.assert_allclose(start, model(inputs), rtol=1e-5, atol=1e-6)
    assert [kernel.name for kernel in small.kernels] == ["scale/matrix", "double/kernel"]
    assert [list(kernel.variables) for kernel in small.kernels] == [["W"], ["V", "U", "C"]]
    small.finalize()
    plain = strip_compression(small)
    assert type(plain.get_layer("double")) is Doubled
    assert type(plain.get_layer("scale")) is Scale
    matrix = keras.ops.convert_to_numpy(plain.get_layer("scale").matrix)
    assert 0 < np.count_nonzero(matrix) < matrix.size
    np.testing.assert_allclose(plain(inputs), small(inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [{"padding": "causal", "dilation_rate": 2}, {"strides": 2, "padding": "same"}, {"groups": 2}],
)
def test_convolutions_over_time_of_every_kind(arguments):
    model = keras.Sequential([keras.Input((9, 4)), layers.Conv1D(6, 3, **arguments)])
    inputs = np.random.default_rng(1).normal(size=(2, 9, 4)).astype(np.float32)
    small = compress(model, "atmc", ratio=0.5)
    start = small(inputs, training=True)
    np.testing.assert_allclose(start, model(inputs), rtol=1e-5, atol=1e-6)
    expected = ["W"] if "groups" in arguments else ["V", "U", "C"]
    assert list(small.kernels[0].variables) == expected
    small.finalize()
    np.testing.assert_allclose(
        strip_compression(small)(inputs), small(inputs), rtol=1e-5, atol=1e-6
    )


def test_several_inputs_given_as_a_dictionary():
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    both = layers.Concatenate()([layers.Dense(4)(left), layers.Dense(4)(right)])
    model = keras.Model({"left": left, "right": right}, layers.Dense(2)(both))
    inputs = {"left": np.ones((2, 4), np.float32), "right": np.ones((2, 3), np.float32)}
    small = compress(model, "atmc", ratio=1.0, schedule="constant")
    assert len(small.kernels) == 3
    np.testing.assert_allclose(small(inputs), model(inputs), rtol=1e-5)
    np.testing.assert_allclose(small.predict(inputs, verbose=0), model(inputs), rtol=1e-5)


def test_layers_are_chosen_by_name_by_function_or_by_mark():
    by_name = compress(_sequential(), "al0", ratio=0.5, layers=["dense"])
    assert [kernel.name for kernel in by_name.kernels] == ["dense/kernel"]
    by_rule = compress(
        _sequential(), "al0", ratio=0.5, layers=lambda layer: isinstance(layer, layers.Conv2D)
    )
    assert [kernel.layer.name for kernel in by_rule.kernels] == ["conv2d_1"]
    reasons = {d.layer: d.reason for d in by_rule.compression_report().layers}
    assert reasons["dense_1"] == "not selected"
    with pytest.raises(ValueError, match="No layer is named.*missing"):
        compress(_sequential(), "al0", ratio=0.5, layers=["missing"])


def test_a_layer_or_a_list_of_layers_is_marked_and_unmarked():
    one = compress(layers.Dense(6, name="one"), "al0", ratio=0.5)
    many = compress([layers.Dense(5, name="two"), layers.ReLU()], "al0", ratio=0.5)
    assert isinstance(one, layers.Dense) and isinstance(many, list)
    model = keras.Sequential([keras.Input((4,)), one, *many, layers.Dense(3, name="rest")])
    small = compress(model, "al0", ratio=0.5)
    assert [kernel.layer.name for kernel in small.kernels] == ["one", "two"]
    assert strip_compression(many[0]) is many[0]
    again = compress(model, "al0", ratio=0.5)
    assert [kernel.layer.name for kernel in again.kernels] == ["one"]
    frozen = layers.Dense(3, trainable=False)
    frozen.build((None, 2))
    with pytest.raises(ValueError, match="cannot be compressed: frozen"):
        compress(frozen, "al0", ratio=0.5)
    with pytest.raises(TypeError, match="Keras layer"):
        compress(["dense"], "al0", ratio=0.5)
    with pytest.raises(ValueError, match="returned by compress"):
        strip_compression(model)


_FRESH = """
import sys, numpy, keras
import tfmot_atmc
model = keras.saving.load_model(sys.argv[1])
inputs = numpy.load(sys.argv[2])
assert type(model).__name__ == "CompressedModel", type(model)
assert model.optimizer is not None
numpy.save(sys.argv[3], model.predict(inputs, verbose=0))
plain = tfmot_atmc.strip_compression(model)
numpy.save(sys.argv[4], plain.predict(inputs, verbose=0))
"""


def test_a_saved_model_loads_in_a_fresh_process_without_a_scope(tmp_path):
    small = compress(_sequential(), "atmc", ratio=0.2, bits=3)
    small.finalize()
    small.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    paths = [tmp_path / name for name in ("model.keras", "x.npy", "y.npy", "plain.npy")]
    small.save(paths[0])
    np.save(paths[1], X)
    command = [sys.executable, "-c", _FRESH, *map(str, paths)]
    root = pathlib.Path(__file__).resolve().parent.parent
    subprocess.run(command, check=True, cwd=root, capture_output=True, timeout=300)
    expected = small.predict(X, verbose=0)
    np.testing.assert_array_equal(np.load(paths[2]), expected)
    np.testing.assert_allclose(np.load(paths[3]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["nested", "subclassed"])
def test_saving_and_loading_keeps_every_variable(kind, tmp_path):
    small = compress(MODELS[kind][0](), "atmc", ratio=0.2, bits=3, algorithm="admm")
    for weight in small.weights:
        if "float" in weight.dtype:
            weight.assign(weight + 0.125)
    small.save(tmp_path / "model.keras")
    with compression_scope():
        again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again, CompressedModel)
    assert [w.name for w in again.weights] == [w.name for w in small.weights]
    for mine, theirs in zip(again.weights, small.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_tf_keras_models_are_converted_on_the_way_in():
    tf_keras = pytest.importorskip("tf_keras")
    tfmot = pytest.importorskip("tensorflow_model_optimization")
    old = tf_keras.Sequential(
        [
            tf_keras.layers.Conv2D(3, 3, activation="relu", input_shape=(8, 8, 1)),
            tf_keras.layers.Flatten(),
            tf_keras.layers.Dense(4, name="out"),
        ]
    )
    small = compress(old, "atmc", ratio=0.5)
    assert isinstance(small, keras.Model) and len(small.kernels) == 2
    np.testing.assert_allclose(small(X, training=True), old(X).numpy(), rtol=1e-4, atol=1e-5)
    pruned = tfmot.sparsity.keras.prune_low_magnitude(old)
    from_pruned = compress(pruned, "atmc", ratio=0.5)
    start = from_pruned(X, training=True)
    np.testing.assert_allclose(start, old(X).numpy(), rtol=1e-4, atol=1e-5)
