# SPDX-License-Identifier: Apache-2.0
import keras
import numpy as np
import pytest

from tfmot_atmc import models

# Kernel weights, and all trainable numbers (kernels, biases, batch normalisation's gamma and beta).
COUNTS = {
    "lenet": ({}, 430_500, 431_080),
    "mnist_cnn": ({}, 166_248, 166_406),
    "mnist_cnn-half": ({"width": 0.5}, 128 + 2_048 + 39_200 + 500, 41_876 + 8 + 16 + 50 + 10),
    "compact_cnn": ({}, 11_912, 11_978),
    "compact_cnn-s5k": ({"filters": (6, 10), "units": 16}, 4_370, 4_412),
    "compact_cnn-s2k": ({"filters": (4, 8), "units": 0}, 2_180, 2_202),
    "resnet34": ({}, 21_265_088, 21_282_122),
    "resnet34-cifar100": ({"num_classes": 100}, 21_311_168, 21_328_292),
    "resnet34-imagenet100": (
        {"num_classes": 100, "stem": "imagenet", "input_shape": (224, 224, 3)},
        21_318_848,
        21_335_972,
    ),
    "resnet34-small-p0.1": (
        {"widths": (23, 25, 27, 29), "classifier_bias": False},
        199_198,
        201_078,
    ),
    "resnet34-small-p1.0": (
        {"widths": (6, 13, 26, 51), "classifier_bias": False},
        214_652,
        216_360,
    ),
    "wide_resnet_16_8": ({}, 10_954_160, 10_961_370),
    "resnet18": ({}, 11_164_352, 11_173_962),
    "resnet18-imagenet": (
        {"num_classes": 1000, "stem": "imagenet", "input_shape": (224, 224, 3)},
        11_678_912,
        11_689_512,
    ),
    "resnet50": ({}, 23_467_712, 23_520_842),
    "resnet50-imagenet": (
        {"num_classes": 1000, "stem": "imagenet", "input_shape": (224, 224, 3)},
        25_502_912,
        25_557_032,
    ),
    "resnet101": ({}, 42_407_616, 42_512_970),
    "resnet20": ({}, 268_336, 269_722),
    "resnet56": ({}, 848_944, 853_018),
}
SMALL = {
    "lenet": (28, 28, 1),
    "small_cnn": (8, 8, 1),
    "resnet20": (32, 32, 3),
}


def _trainable(model):
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def _images(shape, count=3):
    return np.random.default_rng(0).random((count, *shape), dtype="float32")


@pytest.mark.parametrize("case", COUNTS)
def test_counts_are_those_of_the_papers(case):
    arguments, kernels, trainable = COUNTS[case]
    model = models.get(case.split("-")[0], **arguments)
    assert models.count_kernel_weights(model) == kernels
    assert _trainable(model) == trainable


@pytest.mark.parametrize(("name", "macs"), [("resnet20", 40_551_040), ("resnet56", 125_485_696)])
def test_multiply_accumulates_are_counted(name, macs):
    assert models.count_macs(models.get(name)) == macs


def test_counts_reach_nested_models_once_and_refuse_unbuilt_ones():
    inner = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6, use_bias=False)])
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inner(inner(inputs))))
    assert models.count_kernel_weights(model) == 36 + 12
    with pytest.raises(ValueError, match="no weights yet"):
        models.count_kernel_weights(keras.Sequential([keras.layers.Dense(2)]))


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_finite_and_saving_keeps_them(name, tmp_path):
    model = models.get(
        name,
        input_shape=SMALL[name],
        seed=3,
        normalization=([0.4] * SMALL[name][-1], [0.25] * SMALL[name][-1]),
    )
    images = _images(SMALL[name])
    logits = model(images).numpy()
    assert logits.shape == (3, 10)
    assert np.isfinite(logits).all()
    assert (logits < 0).any()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images).numpy(), logits)


def test_the_seed_fixes_the_weights_and_no_two_layers_share_values():
    first, second, other = (models.lenet(seed=seed).get_weights() for seed in (5, 5, 6))
    for mine, same, different in zip(first, second, other, strict=True):
        np.testing.assert_array_equal(mine, same)
        assert not np.array_equal(mine, different)
    scaled = [weight.ravel()[0] / np.abs(weight).max() for weight in first]
    assert len(set(scaled)) == len(scaled)


def test_normalization_is_a_layer_that_shifts_and_scales():
    model = models.small_cnn((8, 8, 3), normalization=([0.1, 0.2, 0.3], [0.5, 0.25, 2.0]))
    images = _images((8, 8, 3))
    expected = (images - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.25, 2.0])
    np.testing.assert_allclose(model.get_layer("normalization")(images), expected, atol=1e-6)
    with pytest.raises(ValueError, match="one number per channel"):
        models.small_cnn((8, 8, 3), normalization=([0.1, 0.2], [0.5, 0.25]))
    with pytest.raises(ValueError, match="positive deviations, one number"):
        models.small_cnn((8, 8, 1), normalization=([0.1], [0.0]))


def test_classifier_activation_turns_logits_into_probabilities():
    images = _images((28, 28, 1))
    logits = models.lenet(seed=1)(images).numpy()
    probabilities = models.lenet(seed=1, classifier_activation="softmax")(images).numpy()
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(
        probabilities, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), atol=1e-6
    )


def test_lenet_has_one_relu_and_four_biases():
    model = models.lenet()
    activations = [layer.activation.__name__ for layer in model.layers if hasattr(layer, "kernel")]
    assert activations == ["linear", "linear", "relu", "linear"]
    assert sorted(v.shape[0] for v in model.trainable_variables if v.ndim == 1) == [10, 20, 50, 500]


def test_fan_in_uniform_fills_its_interval_for_kernels_and_biases():
    kernel = models.FanInUniform(seed=0)((5, 5, 4, 100)).numpy()
    assert 0.0999 < np.abs(kernel).max() <= 0.1
    assert abs(kernel.mean()) < 0.002
    bias = models.FanInUniform(fan_in=4, seed=0)((2000,)).numpy()
    assert 0.49 < np.abs(bias).max() <= 0.5
    with pytest.raises(ValueError, match="fan_in"):
        models.FanInUniform()((7,))


def test_strided_convolution_is_padded_by_one_on_each_side():
    model = models.resnet([1, 1], widths=(1, 1), input_shape=(8, 8, 1), seed=0)
    layer = model.get_layer("stage2_block1_1_conv")
    padded = keras.Model(model.input, layer.input)(_images((8, 8, 1))).numpy()
    assert padded.shape[1:3] == (10, 10)
    assert not padded[:, [0, -1]].any() and not padded[:, :, [0, -1]].any()
    assert layer.output.shape[1:3] == (4, 4)


def test_option_a_shortcut_subsamples_and_adds_zero_channels():
    images = np.arange(2 * 5 * 5 * 2, dtype="float32").reshape(2, 5, 5, 2)
    layer = models.SubsampleShortcut(5, strides=2)
    outputs = layer(images).numpy()
    np.testing.assert_array_equal(outputs[..., 1:3], images[:, ::2, ::2])
    assert not outputs[..., [0, 3, 4]].any()
    assert outputs.shape == layer.compute_output_shape(images.shape)
    with pytest.raises(ValueError, match="at least the number of input channels"):
        models.SubsampleShortcut(1)(images)


def test_batch_normalisation_has_the_reference_settings():
    for model in (models.resnet20(), models.wide_resnet(10, 1)):
        layers = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
        assert layers
        assert {(layer.epsilon, layer.momentum) for layer in layers} == {(1e-5, 0.9)}


def test_unknown_or_impossible_requests_say_what_is_possible():
    with pytest.raises(ValueError, match="Known models: .*lenet"):
        models.get("alexnet")
    assert models.names() == sorted(models.names())
    for call, message in [
        (lambda: models.cifar_resnet(21), "6 n \\+ 2"),
        (lambda: models.wide_resnet(15), "6 n \\+ 4"),
        (lambda: models.lenet((8, 8, 1)), "small_cnn"),
        (lambda: models.resnet([1], widths=(1, 2)), "one number per stage"),
        (lambda: models.resnet18(stem="vgg"), "imagenet"),
        (lambda: models.small_cnn((8, 8)), "height, width, channels"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


TINY = {
    # All parameters, kernel weights, multiply-accumulates: MLPerf Tiny's reference models.
    "resnet8": (78_666, 77_360, 12_501_632),
    "ds_cnn": (24_908, 22_016, 2_656_768),
    "mobilenet_v1": (221_794, 208_112, 7_489_664),
    "autoencoder": (269_992, 264_192, 264_192),
}


@pytest.mark.parametrize("name", TINY)
def test_the_networks_of_mlperf_tiny_have_its_counts(name):
    model = models.get(name, seed=3)
    everything, kernels, macs = TINY[name]
    assert model.count_params() == everything
    assert models.count_kernel_weights(model) == kernels
    assert models.count_macs(model) == macs
    shape = model.input_shape[1:]
    same, other = models.get(name, seed=3), models.get(name, seed=4)
    images = _images(shape, 2)
    np.testing.assert_array_equal(model(images), same(images))
    first, second = (m.trainable_variables[0].numpy() for m in (model, other))
    assert np.abs(first - second).max() > 1e-2
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert layer.momentum == 0.9


def test_the_networks_of_mlperf_tiny_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="restores|as many numbers as it takes"):
        models.autoencoder((8, 8, 1))
    with pytest.raises(ValueError, match="num_classes"):
        models.autoencoder(num_classes=4)
    with pytest.raises(ValueError, match="width"):
        models.mobilenet_v1(width=0.01)
    with pytest.raises(ValueError, match="input_shape"):
        models.ds_cnn((49, 10))
    assert models.mobilenet_v1((32, 32, 1), 5, width=0.5).output_shape == (None, 5)
    dropout = [la for la in models.ds_cnn().layers if isinstance(la, keras.layers.Dropout)]
    assert len(dropout) == 2 and models.ds_cnn(dropout=False).count_params() == 24_908
