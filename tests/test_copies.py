"""A copy is the model: whatever makes one, its outputs are those of the original."""

import pathlib

import keras
import numpy as np
import pytest
from model_zoo import MODELS, NO_FILE_HOLDS, make, outputs

import tfmot_atmc
from tfmot_atmc import compress, quantize_after_training, slim_model, strip_compression
from tfmot_atmc.attacks import PGD
from tfmot_atmc.slimming import can_factor, factor_layers, is_graph
from tfmot_atmc.utils.cloning import copy_model

everywhere = pytest.mark.parametrize("maker", MODELS, ids=lambda maker: maker.__name__)


def _same(found, expected, tolerance=1e-5):
    assert [f.shape for f in found] == [e.shape for e in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@everywhere
def test_a_copy_gives_the_outputs_of_the_model_and_leaves_it_alone(maker, tmp_path):
    model, x = make(maker), MODELS[maker]
    expected, weights = outputs(model, x), model.get_weights()
    copy = copy_model(model)
    _same(outputs(copy, x), expected, 1e-12)
    assert type(copy) is type(model)
    assert [w.trainable for w in copy.weights] == [w.trainable for w in model.weights]
    assert [x.trainable for x in copy.layers] == [x.trainable for x in model.layers]
    if maker not in NO_FILE_HOLDS:
        copy.save(tmp_path / "copy.keras")
        loaded = keras.saving.load_model(tmp_path / "copy.keras")
        _same(outputs(loaded, x), expected, 1e-6)
    for variable in copy.weights:
        variable.assign(keras.ops.zeros_like(variable))
    _same(outputs(model, x), expected, 1e-12)
    for now, then in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, then)


@everywhere
def test_compressing_stripping_and_quantising_start_from_the_outputs_of_the_model(maker):
    model, x = make(maker), MODELS[maker]
    expected, rounding = outputs(model, x), 2e-2 if "mixed" in maker.__name__ else 1e-5
    small = compress(model, "atmc", ratio=1.0, schedule="constant")
    _same(outputs(small, x), expected, rounding)
    plain = strip_compression(small)
    _same(outputs(plain, x), outputs(small, x))
    assert [type(layer) for layer in plain.layers] == [type(layer) for layer in model.layers]
    _same(outputs(quantize_after_training(model, bits=32), x), expected)
    again = strip_compression(compress(make(maker), "al0", ratio=1.0, in_place=True))
    _same(outputs(again, x), expected, rounding)


@everywhere
def test_models_rebuilt_layer_by_layer_give_the_outputs_of_the_model(maker):
    model, x = make(maker), MODELS[maker]
    if not is_graph(model):
        with pytest.raises(ValueError, match="subclass|graph"):
            slim_model(model)
        return
    expected = outputs(model, x)
    _same(outputs(slim_model(model), x), expected, 1e-4)
    products, inside = {}, model._flatten_layers(include_self=False)
    names = [layer.name for layer in inside]
    for layer in inside:
        if can_factor(layer) and names.count(layer.name) == 1:
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            products[layer.name] = (kernel, np.eye(kernel.shape[-1], dtype=kernel.dtype))
    if products:
        _same(outputs(factor_layers(model, products), x), expected, 1e-4)


def test_a_model_of_bytes_keeps_its_state_where_floats_take_their_place():
    rng = np.random.default_rng(0)
    x = {name: rng.integers(0, 256, (8, 6, 6, 1)).astype("uint8") for name in ("left", "right")}
    inputs = {name: keras.Input((6, 6, 1), dtype="uint8", name=name) for name in x}
    norm = keras.layers.Normalization(axis=None)
    norm.adapt(x["left"].astype("float32"))
    hidden = [norm(keras.ops.cast(tensor, "float32")) for tensor in inputs.values()]
    hidden = keras.layers.Conv2D(4, 3, name="conv")(keras.layers.Concatenate()(hidden))
    hidden = keras.layers.BatchNormalization(name="frozen")(hidden)
    outputs_ = keras.layers.Dense(3)(keras.layers.Flatten()(hidden))
    model = keras.Model(inputs, outputs_)
    model.get_layer("frozen").trainable = False
    attack = PGD(epsilon=4.0, bounds=(0, 255), steps=2)
    small = compress(model, "al0", ratio=1.0, attack=attack)
    floats = {name: value.astype("float32") for name, value in x.items()}
    expected = outputs(model, x)
    for found in (small, strip_compression(small)):
        _same(outputs(found, floats), expected)
        assert not found.get_layer("frozen").trainable


def test_models_are_copied_in_one_place():
    package = pathlib.Path(tfmot_atmc.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "clone_model(" in path.read_text()
    }
    # Both give every layer to `copy_layer` and `copy_state`, and compare outputs.
    assert found == {"slimming/rebuilding.py", "compression/attacked.py"}
