# SPDX-License-Identifier: Apache-2.0
"""Where XNNPACK's sparse kernels would run on ARM: the conditions that were seen there."""

import keras
import numpy as np
import pytest
from keras import layers

import tfmot_atmc as atmc
from tfmot_atmc.export import xnnpack_sparse_layers


def mobile(density=0.3, stem=3, channels=3, strides=2, padded=True, window=1):
    """A network of the pattern of MobileNet, its 1x1 kernels with some nonzeros."""
    x = inputs = keras.Input((32, 32, channels))
    if padded:
        x = layers.ZeroPadding2D(1)(x)
    how = "valid" if padded else "same"
    x = layers.Conv2D(8, stem, strides=strides, padding=how, use_bias=False, name="stem")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    y = layers.ZeroPadding2D(1)(x)
    y = layers.DepthwiseConv2D(3, strides=2, padding="valid", name="halves")(y)
    y = layers.Conv2D(20, 1, name="point")(y)
    z = layers.DepthwiseConv2D(3, padding="same", name="depth")(y)
    z = layers.Conv2D(20, window, padding="same", name="last")(z)
    x = layers.GlobalAveragePooling2D()(layers.Add()([y, z]))
    model = keras.Model(inputs, layers.Dense(5)(x))
    for name in ("point", "last"):
        kernel = model.get_layer(name).kernel
        size = int(np.prod(kernel.shape))
        kernel.assign((np.arange(size) < round(density * size)).reshape(kernel.shape))
    return model


def test_a_sparse_mobile_network_fires_and_its_layers_have_their_roles():
    report = xnnpack_sparse_layers(mobile())
    roles = {one.name: one.role for one in report.layers}
    assert report.fires and report.reasons == ()
    assert roles == {
        "stem": "stem",
        "halves": "depthwise",
        "point": "sparse",
        "depth": "depthwise",
        "last": "sparse",
    }
    assert report.density == (48 + 120) / 560
    assert "run this model on ARM64" in str(report) and "point" in str(report)


@pytest.mark.parametrize(
    ("change", "blocking", "reason"),
    [
        ({"channels": 1}, "stem", "must take three channels; it takes 1"),
        ({"stem": 5}, "stem", "3x3 window and stride 2; it has 5x5"),
        ({"strides": 1}, "stem", "3x3 window and stride 2; it has 3x3 and 1"),
        ({"padded": False}, "stem", r"ZeroPadding2D\(1\) in front"),
        ({"window": 3}, "last", "no sparse kernel for a 3x3 window"),
    ],
)
def test_each_condition_is_told_by_the_layer_that_breaks_it(change, blocking, reason):
    report = xnnpack_sparse_layers(mobile(**change))
    assert not report.fires
    assert [one.name for one in report.layers if one.role == "blocks"] == [blocking]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(str(report))


def test_two_thirds_of_the_pointwise_weights_together_must_be_zero():
    assert xnnpack_sparse_layers(mobile(density=0.32)).fires
    dense = xnnpack_sparse_layers(mobile(density=0.4))
    assert not dense.fires and "it takes 66.7%" in dense.reasons[0]
    lenet = xnnpack_sparse_layers(atmc.models.lenet(seed=0))
    assert not lenet.fires and "There is no 1x1 convolution with stride 1." in lenet.reasons
    with pytest.raises(ValueError, match="graph of"):
        xnnpack_sparse_layers(type("Own", (keras.Model,), {})())
