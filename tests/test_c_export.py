# SPDX-License-Identifier: Apache-2.0
"""C code for microcontrollers: the same numbers as other runtimes, no fault, and clear refusals."""

import subprocess

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

from tests import c_code
from tests.exporting import prune
from tfmot_atmc import datasets, export, models
from tfmot_atmc.export.c import compiled, export_c, sizes
from tfmot_atmc.export.c import export as exporter
from tfmot_atmc.export.c.reading import read_network
from tfmot_atmc.export.c.reference import run_network

LOOSE = {"tolerance": 100.0, "min_agreement": 0.0}


def sequence(shape, *stack):
    return keras.Sequential([keras.Input(shape), *stack])


def small_network(density=0.2):
    return prune(
        sequence(
            (8, 8, 1),
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(20, activation="relu"),
            layers.Dense(10),
        ),
        density,
    )


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture
def converted(monkeypatch):
    """The .tflite models that the exporter makes, as it makes them."""
    found = []
    plain = exporter.convert

    def convert(*arguments, **options):
        found.append(plain(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(exporter, "convert", convert)
    return found


def check_exactness(model, examples, folder, found, *, flags=(), **options):
    """Exports in both ways; compares with the reference, TFLM and the C code under sanitizers."""
    path = folder / "model.c"
    export_c(model, path, representative=examples, **LOOSE, **options)
    network = read_network(found[-1])
    written = compiled.CModel(path)
    codes = written.quantize(examples)
    expected = run_network(network, codes)
    np.testing.assert_array_equal(c_code.run_sanitized(path, codes, np.int8, flags), expected)
    np.testing.assert_array_equal(written.codes(codes), expected)
    # On wide registers; weights are decoded in the first call only.
    wide = compiled.CModel(path, flags=c_code.wide_flags())
    for _ in range(2):
        np.testing.assert_array_equal(wide.codes(codes), expected)
    micro = c_code.run_tflm(found[-1], codes.reshape(-1, *network.input.shape[1:]))
    np.testing.assert_array_equal(micro, expected)
    options.pop("per_channel", None)
    export_c(model, path, values="float32", inputs=examples, **LOOSE, **options)
    floats = run_network(read_network(found[-1]), examples)
    outputs = c_code.run_sanitized(path, examples, np.float32, flags)
    largest = max(np.abs(floats).max(), 1e-30)
    assert np.abs(outputs - floats).max() <= 1e-6 * largest


@c_code.needs_compiler
@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 10_000))
def test_random_networks_compute_the_same_everywhere(tmp_path, converted, seed):
    keras.utils.set_random_seed(seed)
    model, examples = c_code.random_network(np.random.default_rng(seed))
    optimize = ("balanced", "size", "speed")[seed % 3]
    flags = c_code.wide_flags() if seed % 2 else ()
    check_exactness(model, examples, tmp_path, converted, flags=flags, optimize=optimize)


@pytest.mark.slow
@c_code.needs_compiler
@pytest.mark.parametrize("seed", range(100))
def test_many_random_networks_compute_the_same_everywhere(tmp_path, converted, seed):
    keras.utils.set_random_seed(seed)
    model, examples = c_code.random_network(np.random.default_rng(seed))
    flags = c_code.wide_flags() if seed % 2 else ()
    check_exactness(model, examples, tmp_path, converted, flags=flags, optimize="size")


def residual_network():
    """Sums, fused and not, in place and not; concatenation, padding, all poolings, every kernel."""
    inputs = keras.Input((12, 11, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    y = layers.Conv2D(4, 3, padding="same")(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.ReLU()(layers.Add()([x, y]))
    y = layers.Conv2D(6, 3, strides=2, padding="same")(x)
    x = layers.ReLU(6.0)(layers.Add()([y, layers.Conv2D(6, 1, strides=2)(x)]))
    x = layers.Concatenate()([x, layers.AveragePooling2D(3, 1, padding="same")(x)])
    x = layers.BatchNormalization()(layers.MaxPooling2D(3, 2, padding="same")(x))
    x = layers.Conv2D(5, 2)(layers.ZeroPadding2D(1)(x))
    both = [layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)]
    x = layers.Dense(12, activation="relu")(layers.Concatenate()(both))
    x = layers.Conv2D(3, 2, activation="relu")(layers.Reshape((2, 2, 3))(x))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(layers.Flatten()(x)))


@c_code.needs_compiler
def test_every_operator_at_once(tmp_path, converted):
    keras.utils.set_random_seed(2)
    model = residual_network()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "gamma" in weight.path or "variance" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    examples = rng.normal(size=(40, 12, 11, 3)).astype(np.float32)
    check_exactness(model, examples, tmp_path, converted)
    kinds = {operation.kind for operation in read_network(converted[0]).operations}
    assert {"add", "concat", "pad", "mean", "softmax", "depthwise", "multiply_constant"} <= kinds


@c_code.needs_compiler
def test_channels_with_scales_of_their_own_are_more_exact(tmp_path, converted):
    keras.utils.set_random_seed(5)
    rng = np.random.default_rng(0)
    model = sequence((9, 10, 4), layers.DepthwiseConv2D(3, padding="same"), layers.ReLU(),
                     layers.Conv2D(12, 3), layers.MaxPooling2D(2), layers.Flatten(),
                     layers.Dense(5))  # fmt: skip
    examples = rng.random((60, 9, 10, 4)).astype(np.float32)
    check_exactness(model, examples[:20], tmp_path, converted, per_channel=True)
    # One filter of one large weight, and others of many small ones.
    model = sequence((9, 10, 4), layers.Conv2D(12, 3), layers.Flatten())
    kernel = rng.normal(0.02, 0.01, (3, 3, 4, 12))
    kernel[..., 0] = 0.0
    kernel[1, 1, 0, 0] = 1.0
    model.layers[0].kernel.assign(kernel)
    given = {"representative": examples, **LOOSE}
    each = export_c(model, tmp_path / "m.c", per_channel=True, **given)
    common = export_c(model, tmp_path / "m.c", **given)
    assert each.max_difference < 0.5 * common.max_difference
    assert each.table_bytes - common.table_bytes == 12 * 5
    with pytest.raises(ValueError, match="is for values='full_int8'"):
        export_c(model, tmp_path / "m.c", values="float32", per_channel=True)


@c_code.needs_compiler
def test_any_bytes_are_taken_without_a_fault(tmp_path):
    keras.utils.set_random_seed(3)
    model = residual_network()
    rng = np.random.default_rng(1)
    examples = rng.normal(size=(20, 12, 11, 3)).astype(np.float32)
    report = export_c(model, tmp_path / "model.c", representative=examples, **LOOSE)
    bytes_ = np.frombuffer(rng.bytes(200 * 396), np.int8).reshape(200, 396)
    extremes = np.repeat(np.array([[-128], [127], [0]], np.int8), 396, axis=1)
    inputs = np.concatenate([bytes_, extremes])
    outputs = c_code.run_sanitized(tmp_path / "model.c", inputs, np.int8)
    assert outputs.shape == (203, 4) and report.compiled
    wide = c_code.run_sanitized(tmp_path / "model.c", inputs, np.int8, c_code.wide_flags())
    np.testing.assert_array_equal(wide, outputs)
    export_c(model, tmp_path / "model.c", values="float32", inputs=examples, **LOOSE)
    strange = rng.choice(np.array([np.nan, np.inf, -np.inf, 3e38, 0], np.float32), (50, 396))
    for flags in ((), c_code.wide_flags()):
        c_code.run_sanitized(tmp_path / "model.c", strange, np.float32, flags)


@c_code.needs_compiler
def test_reference_models_equal_tflm_and_store_only_their_nonzeros(tmp_path, converted):
    images = np.random.default_rng(0).random((30, 28, 28, 1)).astype(np.float32)
    model = models.references.load("lenet-mnist-0.001")
    report = export_c(model, tmp_path / "model.c", representative=images, **LOOSE)
    written = compiled.CModel(tmp_path / "model.c")
    codes = written.quantize(images)
    np.testing.assert_array_equal(
        written.codes(codes), c_code.run_tflm(converted[0], codes.reshape(images.shape))
    )
    nonzeros = sum(layer.nonzeros for layer in report.layers)
    assert nonzeros <= 382 and report.weight_bytes < 3 * nonzeros
    # 16 weights on 24x24 places, 81 on 8x8, and the dense layers once.
    assert report.operations <= 16 * 576 + 81 * 64 + 151 + 134
    assert report.dense_operations > 50 * report.operations
    assert report.static_bytes < 3_200


@c_code.needs_compiler
def test_trained_networks_keep_their_labels_and_say_so(digits, tmp_path):
    keras.utils.set_random_seed(0)
    model = small_network(1.0)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(digits.x_train, digits.y_train, epochs=3, verbose=0)
    report = export_c(
        model, tmp_path / "model.c", representative=digits.x_train[:200], inputs=digits.x_test
    )
    assert report.label_agreement > 0.97 and report.max_difference < 0.1
    written = compiled.CModel(tmp_path / "model.c")(digits.x_test)
    expected = model.predict(digits.x_test, verbose=0)
    assert np.mean(written.argmax(1) == expected.argmax(1)) == report.label_agreement
    text = str(report)
    assert "nonzero weights" in text and "labels agree" in text and "static RAM" in text
    report.save(tmp_path / "report.json")
    assert report.to_dict()["operations"] == report.operations


@c_code.needs_compiler
def test_files_are_the_same_each_time_and_compile_without_a_library(tmp_path):
    model = small_network()
    images = np.random.default_rng(0).random((20, 8, 8, 1)).astype(np.float32)
    texts = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        export_c(model, folder / "net.c", name="digits", representative=images, **LOOSE)
        texts.append((folder / "net.c").read_text() + (folder / "net.h").read_text())
    assert texts[0] == texts[1]
    assert "digits_invoke" in texts[0] and '#include "net.h"' in texts[0]
    command = [compiled.find_compiler(), *c_code.STRICT, "-ffreestanding", "-O2", "-c"]
    target = tmp_path / "net.o"
    subprocess.run([*command, str(tmp_path / "a" / "net.c"), "-o", str(target)], check=True)
    symbols = subprocess.run(["nm", "-u", str(target)], capture_output=True, text=True).stdout
    assert {line.split()[-1] for line in symbols.splitlines()} <= {"memset", "memcpy"}


@c_code.needs_compiler
@pytest.mark.parametrize("values", ["full_int8", "float32"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_bytes_of_a_camera_go_through_the_models_rescaling(tmp_path, values, per_channel):
    scale, offset = ([0.01, 0.02, 0.03], [-1.0, 0.0, 0.5]) if per_channel else (1 / 127.5, -1.0)
    model = prune(
        sequence((6, 6, 3), layers.Rescaling(scale, offset), layers.Conv2D(4, 3), layers.Flatten(),
                 layers.Dense(3)),
        0.5,
    )  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (32, 6, 6, 3)).astype(np.float32)
    given = {"representative": pixels} if values == "full_int8" else {"inputs": pixels}
    pixel_max = 255.0 if per_channel else None
    report = export_c(model, tmp_path / "m.c", values=values, pixel_max=pixel_max, **given)
    written = compiled.CModel(tmp_path / "m.c")
    assert written.input_type == np.uint8 and report.input_bytes == 108
    assert report.max_difference < (0.1 if values == "full_int8" else 1e-6)
    np.testing.assert_array_equal(written.quantize(pixels), pixels.astype(np.uint8))
    assert np.abs(written(pixels) - model.predict(pixels, verbose=0)).max() < 1.0


@c_code.needs_compiler
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_dilated_kernels_are_kernels_with_zeros(tmp_path, converted, padding):
    model = prune(
        sequence((11, 10, 2), layers.Conv2D(4, 3, dilation_rate=2, padding=padding),
                 layers.DepthwiseConv2D(2, dilation_rate=3, padding=padding), layers.Flatten(),
                 layers.Dense(3)),
        0.6,
    )  # fmt: skip
    examples = np.random.default_rng(0).random((20, 11, 10, 2)).astype(np.float32)
    check_exactness(model, examples, tmp_path, converted)
    report = export_c(model, tmp_path / "model.c", representative=examples, **LOOSE)
    outputs = {"same": 11 * 10, "valid": 7 * 6}[padding]
    assert report.layers[0].dense_operations == 4 * 2 * 9 * outputs


@c_code.needs_compiler
def test_rescaling_without_bytes_is_part_of_the_network(tmp_path, converted):
    model = prune(
        sequence((5, 5, 2), layers.Rescaling([2.0, 3.0], [-0.5, 0.1]), layers.Conv2D(3, 3),
                 layers.Flatten(), layers.Dense(3)),
        0.6,
    )  # fmt: skip
    examples = np.random.default_rng(0).random((30, 5, 5, 2)).astype(np.float32)
    check_exactness(model, examples, tmp_path, converted)


@c_code.needs_compiler
@pytest.mark.parametrize("left", [0, 1])
def test_layers_of_one_weight_or_none(tmp_path, converted, left):
    model = small_network()
    for layer in (model.layers[0], model.layers[3]):
        kernel = np.zeros(layer.kernel.shape, np.float32)
        kernel.reshape(-1)[:left] = 0.5
        layer.kernel.assign(kernel)
    examples = np.random.default_rng(0).random((16, 8, 8, 1)).astype(np.float32)
    check_exactness(model, examples, tmp_path, converted, slim=False)


def test_without_a_compiler_numpy_stands_in_and_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "find_compiler", lambda: None)
    monkeypatch.setattr(sizes.shutil, "which", lambda name: None)
    images = np.random.default_rng(0).random((20, 8, 8, 1)).astype(np.float32)
    report = export_c(small_network(), tmp_path / "m.c", representative=images, **LOOSE)
    assert not report.compiled and report.footprints == ()
    assert "no C compiler" in str(report) and "not measured" in str(report)
    monkeypatch.setattr(compiled, "find_compiler", lambda: None)
    with pytest.raises(compiled.CompilerMissingError, match="install gcc or clang"):
        compiled.CModel(tmp_path / "m.c")
    with pytest.raises(export.TooLargeError, match="estimated"):
        export_c(small_network(), tmp_path / "n.c", representative=images, max_flash="2KB", **LOOSE)
    assert not (tmp_path / "n.c").exists()


@c_code.needs_arm
def test_limits_hold_or_refuse_with_figures(tmp_path):
    images = np.random.default_rng(0).random((20, 8, 8, 1)).astype(np.float32)
    model, given = small_network(), {"representative": images, **LOOSE}
    report = export_c(model, tmp_path / "m.c", **given)
    (fast,) = (f for f in report.footprints if f.cpu == "cortex-m4" and f.optimize == "-O2")
    (small,) = (f for f in report.footprints if f.cpu == "cortex-m4" and f.optimize == "-Os")
    assert small.flash < fast.flash and fast.stack is not None and fast.static >= 64
    assert fast.static == report.static_bytes
    export_c(model, tmp_path / "m.c", max_flash=small.flash, max_ram=small.ram, **given)
    for limits in ({"max_flash": small.flash - 1}, {"max_ram": min(small.ram, fast.ram) - 1}):
        with pytest.raises(export.TooLargeError, match=rf"needs {small.flash:,} bytes of flash"):
            export_c(model, tmp_path / "no.c", **limits, **given)
    with pytest.raises(ValueError, match="size must be a positive"):
        export_c(model, tmp_path / "no.c", max_flash=0, **given)
    assert list(tmp_path.glob("no.*")) == []


def two_inputs():
    first, second = keras.Input((4,)), keras.Input((4,))
    return keras.Model([first, second], layers.Dense(2)(first + second))


def two_outputs():
    inputs = keras.Input((4,))
    return keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(3)(inputs)])


REFUSED = {
    "several inputs": (two_inputs, "networks of one input"),
    "several outputs": (two_outputs, "networks of one output"),
    "an operator": (
        lambda: sequence((4, 4, 1), layers.Lambda(keras.ops.sin), layers.Flatten()),
        "no kernel for SIN.*TensorFlow Lite Micro",
    ),
    "a recurrent layer": (lambda: sequence((4, 3), layers.LSTM(2)), "recurrent layers"),
    "weights that are not finite": (
        lambda: sequence(
            (4,), layers.Dense(2, kernel_initializer=keras.initializers.Constant(np.nan))
        ),
        "kernel' are not finite",
    ),
    "a product": (
        lambda: (lambda x: keras.Model(x, layers.Multiply()([x, x])))(keras.Input((4,))),
        "product of two computed tensors",
    ),
    "a softmax of pixels": (
        lambda: sequence((4, 4, 2), layers.Softmax()),
        "softmax for each pixel",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_kernel_is_named_before_anything_is_written(case, tmp_path):
    make, message = REFUSED[case]
    with pytest.raises(export.UnsupportedError, match=message):
        export_c(make(), tmp_path / "m.c", values="float32")
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path):
    model = small_network()
    images = np.zeros((4, 8, 8, 1), np.float32)
    path = tmp_path / "m.c"
    for options, message in (
        ({}, "pass `representative`"),
        ({"values": "float32", "representative": images}, "leave it out"),
        ({"values": "int4"}, "`values` must be one of"),
        ({"representative": images, "name": "2nd"}, "`name` must be"),
        ({"representative": images, "name": "float"}, "`name` must be"),
        ({"representative": images, "optimize": "fast"}, "`optimize` must be one of"),
        ({"representative": images, "cpu": "avr"}, "`cpu` must be one of"),
        ({"representative": images, "pixel_max": -1.0}, "`pixel_max` must be"),
        ({"representative": images, "pixel_max": "255"}, "`pixel_max` must be"),
        ({"representative": list(images)}, "Received 4 arrays; pass one array"),
        ({"representative": images[:, :5]}, "must have shape"),
        ({"representative": images * np.nan}, "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            export_c(model, path, **options)
    with pytest.raises(ValueError, match=r"must end in \.c"):
        export_c(model, tmp_path / "m.txt", representative=images)
    with pytest.raises(ValueError, match="quotes and backslashes"):
        export_c(model, tmp_path / 'm".c', representative=images)
    with pytest.raises(TypeError, match=r"keras\.Model"):
        export_c("model", path, representative=images)
    with pytest.raises(TypeError, match="take some hundred examples out of a dataset"):
        export_c(model, path, representative=iter(images))
    both = keras.Sequential([keras.Input(batch_shape=(2, 8, 8, 1)), layers.Flatten()])
    with pytest.raises(ValueError, match="built for 2 at once"):
        export_c(both, path, representative=images)
    open_shape = sequence((None, None, 1), layers.Conv2D(2, 3), layers.GlobalAveragePooling2D())
    with pytest.raises(ValueError, match="open shape"):
        export_c(open_shape, path, values="float32")
    assert list(tmp_path.iterdir()) == []


@c_code.needs_compiler
def test_other_data_is_found_by_the_gate_and_older_files_stay(digits, tmp_path):
    model, path = small_network(1.0), tmp_path / "m.c"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_c(model, path, representative=digits.x_train[:9], overwrite=False)
    dark = {"representative": 0.02 * digits.x_train[:50], "inputs": digits.x_test[:100]}
    with pytest.raises(export.ExportError, match="differs from Keras|of the examples"):
        export_c(model, path, **dark)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@c_code.needs_compiler
def test_an_interruption_between_both_files_leaves_none_that_compile(tmp_path, monkeypatch):
    images = np.random.default_rng(0).random((20, 8, 8, 1)).astype(np.float32)
    given = {"representative": images, **LOOSE}
    export_c(small_network(), tmp_path / "m.c", **given)
    plain = exporter.write_bytes

    def write(path, data):
        if str(path).endswith(".c"):
            raise KeyboardInterrupt
        plain(path, data)

    monkeypatch.setattr(exporter, "write_bytes", write)
    with pytest.raises(KeyboardInterrupt):
        export_c(small_network(0.3), tmp_path / "m.c", **given)
    with pytest.raises(ValueError, match=r"m\.h is of another export than this file; export again"):
        compiled.CModel(tmp_path / "m.c")
    monkeypatch.undo()
    export_c(small_network(0.3), tmp_path / "m.c", **given)
    assert compiled.CModel(tmp_path / "m.c")(images).shape == (20, 10)


@c_code.needs_compiler
def test_c_models_refuse_what_is_not_theirs(tmp_path):
    images = np.random.default_rng(0).random((20, 8, 8, 1)).astype(np.float32)
    export_c(small_network(), tmp_path / "m.c", representative=images, **LOOSE)
    written = compiled.CModel(tmp_path / "m.c")
    with pytest.raises(ValueError, match="64 elements an example"):
        written.codes(np.zeros((2, 63), np.int8))
    with pytest.raises(ValueError, match="Expected int8"):
        written.codes(np.zeros((2, 64), np.float32))
    assert written(images[:0]).shape == (0, 10)
    (tmp_path / "m.h").write_text("int x;")
    with pytest.raises(ValueError, match="not a header that `export_c` wrote"):
        compiled.CModel(tmp_path / "m.c")
    (tmp_path / "m.h").unlink()
    with pytest.raises(FileNotFoundError, match="writes both files"):
        compiled.CModel(tmp_path / "m.c")
