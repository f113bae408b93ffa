# SPDX-License-Identifier: Apache-2.0
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfmot_atmc as atmc
from tfmot_atmc import methods, models
from tfmot_atmc.compression.widths import plan_channels, plan_width
from tfmot_atmc.export import inspect_tflite
from tfmot_atmc.export.tflite import integers
from tfmot_atmc.kernels import GridKernel
from tfmot_atmc.methods import DA, FewBits
from tfmot_atmc.recipes import CompressionSettings, run_compression

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def on_a_grid(model, bits):
    """A copy of a network whose kernels have as many values as bits allow, none of them rounded."""
    rng, largest = np.random.default_rng(0), 2 ** (bits - 1) - 1
    for layer in model.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            codes = rng.integers(-largest, largest + 1, kernel.shape)
            layer.set_weights([np.float32(0.07) * codes.astype(np.float32), bias])
    return model


def test_a_grid_kernel_rounds_and_learns_as_computed_by_hand():
    kernel = GridKernel(bits=3)  # -3 to 3
    latent = tf.Variable([0.6, -0.9, 4.0, 0.1])
    log_scale = tf.Variable([np.log(0.5)], dtype=tf.float32)
    with tf.GradientTape() as tape:
        values = kernel.compose({"latent": latent, "log_scale": log_scale})
        loss = tf.reduce_sum(values * [1.0, 2.0, 3.0, 4.0])
    # The weights are 1.2, -1.8, 8 and 0.2 scales: rounded to 1, -2, 3 and 0.
    np.testing.assert_allclose(values, [0.5, -1.0, 1.5, 0.0], rtol=1e-6)
    of_latent, of_scale = tape.gradient(loss, [latent, log_scale])
    np.testing.assert_array_equal(of_latent, [1.0, 2.0, 0.0, 4.0])  # 8 is beyond 3.5
    # Errors of rounding -0.2, -0.2 and -0.2, the clipped code 3; a scale of 0.5 by its logarithm.
    by_hand = 0.5 * (-0.2 + 2 * -0.2 + 3 * 3 + 4 * -0.2) / np.sqrt(3 * 4)
    np.testing.assert_allclose(of_scale, [by_hand], rtol=1e-5)


def test_a_grid_kernel_starts_at_the_nearest_grid_and_refuses_other_bits():
    values = GridKernel(2).initial_values(np.float32([[1.0, -1.0], [0.0, 1.0]]))
    np.testing.assert_allclose(np.exp(values["log_scale"]), [1.0], rtol=0.02)
    assert GridKernel(4).initial_values(np.zeros((2, 2)))["log_scale"].tolist() == [0.0]
    assert GridKernel.from_config(GridKernel(3).get_config()).largest == 3
    for wrong in (1, 9, True, 2.0):
        with pytest.raises(ValueError, match="bits"):
            GridKernel(wrong)


def test_few_bits_trains_keeps_its_grid_through_files_and_goes_on_densely(tmp_path):
    model = models.compact_cnn(filters=(2, 3), units=4, seed=0)
    images = np.random.default_rng(0).random((32, 28, 28, 1), np.float32)
    labels = np.arange(32) % 10
    compressed = atmc.compress(model, FewBits(2, ends=2))
    compressed.compile(keras.optimizers.Adam(1e-2), LOGITS)
    compressed.fit(images, labels, batch_size=8, epochs=2, verbose=0)
    compressed.save(tmp_path / "few.keras")
    plain = atmc.strip_compression(keras.saving.load_model(tmp_path / "few.keras"))
    np.testing.assert_allclose(plain(images), compressed(images), rtol=1e-5, atol=1e-6)
    for layer in plain.layers:
        if layer.weights:
            assert np.unique(np.abs(layer.get_weights()[0])).size <= 2  # 0 and the scale
    again = atmc.compress(compressed, DA())
    np.testing.assert_allclose(again(images), plain(images), rtol=1e-5, atol=1e-6)
    file = atmc.export_tflite(plain, tmp_path / "few.tflite", values="int2", measure_latency=False)
    assert {tensor.dtype for tensor in file.tensors} == {"int2"}
    assert file.max_difference < 1e-5


@pytest.mark.parametrize(("bits", "values"), [(2, "int2"), (4, "int4")])
def test_a_file_holds_two_or_four_bits_a_weight_exactly(tmp_path, bits, values):
    model = on_a_grid(models.compact_cnn(filters=(3, 5), units=7, seed=0), bits)
    eight = atmc.export_tflite(model, tmp_path / "8.tflite", values="int8", measure_latency=False)
    few = atmc.export_tflite(model, tmp_path / "few.tflite", values=values, measure_latency=False)
    assert few.max_difference < 1e-5 and few.max_difference_without_delegates < 1e-5
    weights = models.count_kernel_weights(model)
    saved = eight.bytes - few.bytes
    assert saved >= (1 - bits / 8) * weights - 16 * len(few.tensors)
    assert sum(tensor.value_bytes for tensor in few.tensors) <= weights * bits / 8 + 4
    read = {t.name: t for t in inspect_tflite(tmp_path / "few.tflite") if len(t.shape) > 1}
    for tensor in eight.tensors:
        assert read[tensor.name].nonzeros == tensor.nonzeros
        assert read[tensor.name].distinct == tensor.distinct
        assert read[tensor.name].dtype == values
    plain = models.compact_cnn(filters=(3, 5), units=7, seed=0)
    rounded = atmc.export_tflite(plain, tmp_path / "r.tflite", values=values, measure_latency=False)
    assert {tensor.dtype for tensor in rounded.tensors} == {"int8"}  # few bits only where exact


@given(st.sampled_from([2, 4]), st.lists(st.integers(-7, 7), max_size=40))
@settings(max_examples=60, deadline=None)
def test_packed_values_come_back(bits, codes):
    most = 2 ** (bits - 1) - 1
    array = np.clip(np.array(codes, np.int8), -most, most)
    content = integers.packed(array, bits)
    assert content.size == -(-array.size * bits // 8)
    back = integers.unpacked(content, bits, array.size)
    np.testing.assert_array_equal(back, array)
    assert integers.fewest_bits(array, 2) <= bits
    with pytest.raises(ValueError, match="bits"):
        integers.unpacked(content, bits, array.size + 4)


def test_the_widest_network_of_few_bits_has_more_weights_in_the_same_bytes(tmp_path):
    sizes = {}
    for method in (methods.get("small_dense"), FewBits(bits=2)):
        network, plan = plan_width(models.compact_cnn, "4KB", method=method, seed=0)
        sizes[method.file_values] = models.count_kernel_weights(network)
        stored = atmc.strip_compression(atmc.compress(network, method))
        path = tmp_path / f"{method.file_values}.tflite"
        options = {"values": method.file_values, "measure_latency": False, "names": False}
        file = atmc.export_tflite(stored, path, **options)
        assert file.bytes == plan.predicted_bytes <= 4096
    assert [tensor.dtype for tensor in file.tensors].count("int2") == 2  # not the ends
    assert sizes["int2"] > 2.5 * sizes["int8"]


def test_few_bits_is_a_method_like_the_others():
    method = methods.get("few_bits", bits=3, ratio=0.5)
    assert (method.bits, method.ratio, method.narrows, method.file_values) == (3, 0.5, True, "int4")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(method))
    assert (again.bits, again.ends, FewBits(2).file_values) == (3, 8, "int2")
    assert [stage.name for stage in method.stages(4, phases="all")] == ["bits3"]
    chosen = CompressionSettings(dataset="mnist", method="few_bits", max_bytes="4KB").resolved()
    assert (chosen.bits, chosen.file_values()) == (4, "int4")
    for wrong in ({"bits": 1}, {"ends": 9}, {"ratio": 0}):
        with pytest.raises(ValueError, match="must"):
            FewBits(**wrong)


def test_of_a_trained_network_as_many_channels_are_kept_as_fit():
    images = np.random.default_rng(1).random((32, 28, 28, 1), np.float32)
    wide = models.compact_cnn(filters=(6, 8), units=12, seed=0)
    network, plan = plan_channels(wide, "3KB", images, method=FewBits(4))
    one_more = [layer.get_weights()[0].shape[-1] for layer in network.layers if layer.weights]
    assert plan.smallest_bytes < plan.predicted_bytes <= 3072
    assert all(few <= many for few, many in zip(one_more, (6, 8, 12, 10), strict=True))
    assert models.count_kernel_weights(network) < models.count_kernel_weights(wide)
    eight, _ = plan_channels(wide, "3KB", images)
    assert models.count_kernel_weights(eight) < models.count_kernel_weights(network)
    whole, _ = plan_channels(wide, "40KB", images)
    np.testing.assert_allclose(whole(images), wide(images), atol=1e-5)
    with pytest.raises(ValueError, match="one channel"):
        plan_channels(wide, 1000, images)


def test_a_run_goes_on_from_a_wide_network_to_a_file_of_few_bits(tmp_path):
    wide = models.small_cnn(seed=0)
    wide.save(tmp_path / "wide.keras")
    settings = CompressionSettings(
        model=str(tmp_path / "wide.keras"),
        method="few_bits",
        max_bytes="3KB",
        epochs=1,
        steps=1,
        limit=64,
        out=str(tmp_path / "out"),
    )
    lines = []
    results = run_compression(settings, log=lines.append)
    assert results["bytes"]["tflite"] <= results["budget"]["predicted_bytes"] <= 3072
    assert any("weights fit" in line for line in lines)
    assert (results["settings"]["bits"], list(results["seconds"])) == (4, ["bits4"])
    stored = {tensor["dtype"] for tensor in results["export"]["tensors"]}
    assert stored == {"int4", "int8"}
