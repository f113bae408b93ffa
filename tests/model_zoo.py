"""Small models of every kind, each with inputs that it takes: what holds, has to hold for them all.

A model is made by a function without arguments. None has been trained, but what a call can see is
not as a new layer has it: statistics are adapted, moving averages and biases are random.
"""

import types

import keras
import numpy as np
from keras import layers
from zoo_layers import (
    SLOPE,
    Blocks,
    Composite,
    Film,
    Gain,
    Own,
    Remembering,
    StandardisedConv,
    swish_like,
)

RNG = np.random.default_rng(7)
IMAGES = RNG.uniform(size=(6, 8, 8, 1)).astype(np.float32)
COLOURS = RNG.uniform(size=(6, 8, 8, 3)).astype(np.float32)
ROWS = RNG.normal(50.0, 12.0, (6, 5)).astype(np.float32)
UNIT = RNG.uniform(size=(6, 6)).astype(np.float32)
SERIES = RNG.uniform(size=(6, 7, 3)).astype(np.float32)
IDS = RNG.integers(0, 9, (6, 7)).astype(np.int32)
WORDS = np.array(["a b", "b c", "c", "a a b", "d", ""])
LETTERS = np.array([["a", "b"], ["c", "d"], ["e", "a"], ["b", "b"], ["a", "c"], ["d", "d"]])


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(3, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )


def deferred():
    model = keras.Sequential([layers.Flatten(), layers.Dense(5, activation="elu"), layers.Dense(3)])
    model(IMAGES)
    return model


def residual():
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.Add()([y, layers.Conv2D(4, 1)(x)])
    y = layers.Concatenate()([y, layers.AveragePooling2D(3, 1, padding="same")(y)])
    return keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling2D()(y)))


def nested():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="same")], name="inner")
    x = keras.Input((8, 8, 1))
    y = layers.Dense(6, name="same")(layers.Flatten()(x))
    return keras.Model(x, layers.Dense(4)(inner(inner(y))))


def shared():
    twice = layers.Dense(6, activation="relu", name="twice")
    x = keras.Input((6,))
    return keras.Model(x, layers.Dense(4)(twice(twice(x))))


def subclassed():
    model = Blocks()
    model(IMAGES)
    return model


def functional_of_own_class():
    x = keras.Input((6,))
    return Own(x, layers.Dense(3)(layers.Dense(5, activation="gelu")(x)))


def convolutions():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.ZeroPadding2D(1),
            layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu6"),
            layers.Conv2D(4, 1, groups=2),
            layers.SeparableConv2D(3, 3),
            layers.Conv2DTranspose(2, 2, strides=2),
            layers.UpSampling2D(2),
            layers.Cropping2D(1),
            layers.GlobalMaxPooling2D(),
            layers.Dense(3),
        ]
    )


def convolutions_over_time_and_space():
    x = keras.Input((7, 3))
    y = layers.Conv1D(4, 3, padding="causal", dilation_rate=2)(x)
    y = layers.DepthwiseConv1D(3, padding="same")(y)
    y = layers.SeparableConv1D(4, 2, padding="same")(y)
    y = layers.Reshape((7, 2, 2, 1))(y)
    y = layers.Conv3D(2, (3, 1, 1))(y)
    y = layers.MaxPooling3D((1, 2, 1))(y)
    return keras.Model(x, layers.Dense(3)(layers.Flatten()(y)))


def masked_recurrent():
    return keras.Sequential(
        [
            keras.Input((7,), dtype="int32"),
            layers.Embedding(9, 4, mask_zero=True),
            layers.LSTM(4, return_sequences=True),
            layers.Bidirectional(layers.SimpleRNN(3)),
            layers.Dense(3),
        ]
    )


def masked_series():
    x = keras.Input((7, 3))
    y = layers.TimeDistributed(layers.Dense(4, activation="relu"))(layers.Masking(0.5)(x))
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))


def recurrent_with_a_given_state():
    x, state = keras.Input((7, 3), name="x"), keras.Input((4,), name="state")
    return keras.Model([x, state], layers.Dense(3)(layers.GRU(4)(x, initial_state=state)))


def attention():
    x = keras.Input((7, 3))
    y = layers.MultiHeadAttention(2, 3)(x, x)
    y = layers.LayerNormalization()(layers.Add()([x, y]))
    y = layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), bias_axes="d")(y)
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(y)))


def normalisations():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3),
            layers.GroupNormalization(2),
            layers.SpectralNormalization(layers.Conv2D(3, 2)),
            layers.PReLU(shared_axes=[1, 2]),
            layers.UnitNormalization(),
            layers.Flatten(),
            layers.RMSNormalization(),
            layers.Dense(4),
            layers.Softmax(),
        ]
    )


def adapted_normalisation():
    norm = layers.Normalization()
    norm.adapt(ROWS)
    return keras.Sequential(
        [keras.Input((5,)), norm, layers.Dense(6, activation="relu"), layers.Dense(3)]
    )


def adapted_buckets():
    buckets = layers.Discretization(num_bins=4, epsilon=0.01)
    buckets.adapt(ROWS)
    return keras.Sequential(
        [keras.Input((5,)), buckets, layers.Embedding(5, 3), layers.Flatten(), layers.Dense(3)]
    )


def looked_up_letters():
    lookup = layers.StringLookup()
    lookup.adapt(LETTERS)
    return keras.Sequential(
        [
            keras.Input((2,), dtype="string"),
            lookup,
            layers.Embedding(9, 3),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def looked_up_numbers():
    lookup = layers.IntegerLookup(output_mode="multi_hot")
    lookup.adapt(IDS)
    return keras.Sequential([keras.Input((7,), dtype="int64"), lookup, layers.Dense(3)])


def weighed_words():
    text = layers.TextVectorization(8, output_mode="tf_idf")
    text.adapt(WORDS)
    return keras.Sequential([keras.Input((), dtype="string"), text, layers.Dense(3)])


def prepared_images():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(2.0, offset=-1.0),
            layers.RandomFlip(seed=3),
            layers.Resizing(6, 6),
            layers.GaussianNoise(0.3),
            layers.Conv2D(3, 3),
            layers.SpatialDropout2D(0.3),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )


def several_outputs():
    x = keras.Input((6,))
    y = layers.Dense(5, activation="relu")(x)
    return keras.Model(
        x, {"cls": layers.Dense(4, name="cls")(y), "reg": layers.Dense(1, name="reg")(y)}
    )


def several_inputs():
    a, b = keras.Input((6,), name="a"), keras.Input((8, 8, 1), name="b")
    y = layers.Concatenate()([layers.Dense(4)(a), layers.Flatten()(b)])
    return keras.Model({"a": a, "b": b}, layers.Dense(3)(y))


def passes_its_input_on():
    x = keras.Input((6,))
    return keras.Model(x, [x, layers.Dense(3)(x)])


def conditioned_by_keyword():
    x = keras.Input((6,))
    scale = layers.Dense(4, activation="sigmoid")(x)
    return keras.Model(x, layers.Dense(3)(Film()(layers.Dense(4)(x), scale=scale)))


def operations_between_layers():
    x = keras.Input((6,))
    y = layers.Dense(4)(x)
    y = keras.ops.concatenate([y * 2.0 + 1.0, keras.ops.relu(y)], axis=-1)
    return keras.Model(x, layers.Dense(3)(y) / 3.0)


def own_functions():
    offset = 0.25
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Lambda(lambda x: x + offset * SLOPE, output_shape=(6,)),
            layers.Dense(4, activation=swish_like),
            layers.Activation(swish_like),
            layers.Dense(3),
        ]
    )


def own_state():
    gain = Gain()
    gain.gain = 3.0
    last = Remembering(3)
    last.shift = -2.0
    return keras.Sequential([keras.Input((6,)), layers.Dense(4), gain, last])


def own_convolution():
    return keras.Sequential(
        [keras.Input((8, 8, 1)), StandardisedConv(4, 3), layers.Flatten(), layers.Dense(3)]
    )


def layers_of_layers():
    return keras.Sequential([keras.Input((6,)), Composite(5), Composite(4), layers.Dense(3)])


def method_attached():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="bent"), layers.Dense(3)])
    bent = model.get_layer("bent")

    def call(self, inputs, training=None):
        return keras.ops.tanh(keras.ops.matmul(inputs, self.kernel)) + self.bias

    bent.call = types.MethodType(call, bent)
    return model


def frozen_parts():
    base = keras.Sequential([keras.Input((6,)), layers.Dense(5), layers.BatchNormalization()])
    base.trainable = False
    x = keras.Input((6,))
    y = layers.Dense(4, name="half")(base(x))
    model = keras.Model(x, layers.Dense(3)(y))
    model.get_layer("half").bias.trainable = False
    return model


def penalised():
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, kernel_regularizer="l2", activity_regularizer="l1"),
            layers.Dense(4, kernel_constraint="max_norm", bias_regularizer="l1"),
            layers.Dense(3),
        ]
    )


def mixed_precision():
    with_policy = {"dtype": "mixed_bfloat16"}
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(3, 3, **with_policy),
            layers.Flatten(**with_policy),
            layers.Dense(4, dtype="float32"),
        ]
    )


def double_precision():
    return keras.Sequential(
        [
            keras.Input((6,), dtype="float64"),
            layers.Dense(4, dtype="float64", activation="selu"),
            layers.Dense(3, dtype="float64"),
        ]
    )


MODELS = {
    sequential: IMAGES,
    deferred: IMAGES,
    residual: COLOURS,
    nested: IMAGES,
    shared: UNIT,
    subclassed: IMAGES,
    functional_of_own_class: UNIT,
    convolutions: COLOURS,
    convolutions_over_time_and_space: SERIES,
    masked_recurrent: IDS,
    masked_series: SERIES,
    recurrent_with_a_given_state: [SERIES, UNIT[:, :4]],
    attention: SERIES,
    normalisations: IMAGES,
    adapted_normalisation: ROWS,
    adapted_buckets: ROWS,
    looked_up_letters: LETTERS,
    looked_up_numbers: IDS.astype(np.int64),
    weighed_words: WORDS,
    prepared_images: IMAGES,
    several_outputs: UNIT,
    several_inputs: {"a": UNIT, "b": IMAGES},
    passes_its_input_on: UNIT,
    conditioned_by_keyword: UNIT,
    operations_between_layers: UNIT,
    own_functions: UNIT,
    own_state: UNIT,
    own_convolution: IMAGES,
    layers_of_layers: UNIT,
    method_attached: UNIT,
    frozen_parts: UNIT,
    penalised: UNIT,
    mixed_precision: IMAGES,
    double_precision: UNIT.astype(np.float64),
}
"""Each model's maker, and inputs for it."""

if keras.__version__.startswith("3.10."):
    del MODELS[weighed_words]  # this Keras cannot load its own file of such a layer

NO_FILE_HOLDS = (own_functions, method_attached)
"""What Keras itself saves only in part."""


def make(maker, seed=0):
    """Returns a model, with biases and moving averages that a new layer does not have."""
    keras.utils.set_random_seed(seed)
    model = maker()
    rng = np.random.default_rng(seed)
    adapted = (layers.Normalization, layers.Discretization, layers.TextVectorization)
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, adapted):
            continue
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            if len(variable.shape) == 1 and "float" in variable.dtype:
                variable.assign(rng.uniform(0.1, 1.0, variable.shape))
    return model


def tensors(inputs):
    """Returns inputs as a model called directly takes them."""
    return keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)


def outputs(model, inputs):
    """Returns what a model gives in inference, as a list of arrays."""
    return [
        np.asarray(keras.ops.cast(y, "float64"))
        for y in keras.tree.flatten(model(tensors(inputs), training=False))
    ]


def kinds():
    """Returns the classes of all layers in the zoo."""
    return {
        type(layer).__name__ for maker in MODELS for layer in maker()._flatten_layers(False)
    } - {"InputLayer"}
