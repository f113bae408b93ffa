"""What lies at the edge of a .tflite file: exported, or refused with what to do."""

import keras
import numpy as np
import pytest
from keras import layers
from model_zoo import MODELS, WORDS, Film, make, tensors, weighed_words

from tfmot_atmc import compress, deploy, export_tflite, plan_budget
from tfmot_atmc.export import ExportError, TFLiteModel

RNG = np.random.default_rng(3)
ROWS = RNG.uniform(size=(8, 6)).astype(np.float32)
named = {maker.__name__: maker for maker in MODELS}


def _exported(model, x, path, tolerance=None):
    """Exports a model, and returns how far the file's first output is from Keras."""
    export_tflite(
        model, path / "model.tflite", inputs=x, measure_latency=False, tolerance=tolerance
    )
    found = TFLiteModel(path / "model.tflite")(*keras.tree.flatten(x))
    expected = keras.tree.flatten(model(tensors(x), training=False))
    return [
        np.abs(one - np.asarray(keras.ops.cast(other, "float32"))).max()
        for one, other in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize(
    "name",
    [
        "masked_series",
        "recurrent_with_a_given_state",
        "conditioned_by_keyword",
        "passes_its_input_on",
        "several_outputs",
        "double_precision",
        "adapted_normalisation",
        "method_attached",
    ],
)
def test_a_file_gives_the_outputs_of_the_model(name, tmp_path):
    assert max(_exported(make(named[name]), MODELS[named[name]], tmp_path)) < 1e-3


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
def test_models_of_narrow_floats_are_exported_in_float32(policy, tmp_path):
    parts = [layers.Dense(5, activation="relu", dtype=policy), layers.Dense(3, dtype=policy)]
    model = keras.Sequential([keras.Input((6,), dtype=policy), *parts])
    difference = _exported(model, ROWS, tmp_path)
    assert max(difference) < 0.05
    assert {str(w.dtype) for w in model.weights} == {policy}


def test_deploy_and_plan_budget_take_layers_called_with_masks():
    assert plan_budget(make(named["masked_recurrent"]), "24KB").ratio == 1.0
    deployment = deploy(compress(make(named["masked_recurrent"]), "atmc", ratio=0.5))
    assert [form.composed_macs for form in deployment.forms] == [18]


def _stateful():
    return keras.Sequential(
        [keras.Input(batch_shape=(1, 6, 3)), layers.LSTM(4, stateful=True), layers.Dense(2)]
    ), RNG.uniform(size=(4, 6, 3)).astype(np.float32)


class Noisy(layers.Layer):
    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(1)

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.generator)


def _random():
    return keras.Sequential([keras.Input((6,)), Noisy(), layers.Dense(3)]), ROWS


def _words():
    return weighed_words(), WORDS


def _scalar():
    x = keras.Input((6,))
    return keras.Model(x, keras.ops.sum(layers.Dense(3)(x))), ROWS


@pytest.mark.parametrize(
    ("make_it", "advice"),
    [
        (_stateful, "stateful=False"),
        (_random, "random numbers"),
        (_words, "in front of the model"),
        (_scalar, "first axis"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_with_what_to_do(make_it, advice, tmp_path):
    model, x = make_it()
    with pytest.raises(ExportError, match=advice):
        export_tflite(model, tmp_path / "model.tflite", inputs=x, measure_latency=False)
    assert not list(tmp_path.iterdir())


def test_a_keyword_of_an_own_layer_keeps_its_channels(tmp_path):
    x = keras.Input((6,))
    wide = layers.Dense(4, name="wide")
    scale = layers.Dense(4, activation="sigmoid")(x)
    model = keras.Model(x, layers.Dense(3)(Film()(wide(x), scale=scale)))
    kernel = np.ones((6, 4), np.float32)
    kernel[:, 1] = 0.0  # dead before it is scaled, and still not to be removed
    wide.kernel.assign(kernel)
    assert max(_exported(model, ROWS, tmp_path)) < 1e-5
