"""What is trained, evaluated, stripped and exported is one function, whatever the model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from model_zoo import MODELS, Own, make, outputs, tensors

from tfmot_atmc import compress, evaluate_robustness, strip_compression
from tfmot_atmc.attacks import FGSM, PGD

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RNG = np.random.default_rng(1)
ROWS = RNG.uniform(size=(64, 6)).astype(np.float32)
LABELS = RNG.integers(0, 3, 64)


def _net(**arguments):
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="relu", **arguments), layers.Dense(3)]
    )


@pytest.mark.parametrize("maker", MODELS, ids=lambda maker: maker.__name__)
def test_a_model_whose_budget_does_not_hold_yet_is_deployed_wherever_it_is_called(maker):
    small = compress(make(maker), "atmc", ratio=0.3, bits=2)
    x = MODELS[maker]
    plain = strip_compression(small)
    sparse = compress(make(maker), "al0", ratio=0.3)  # has no codebook to be chosen yet
    expected = outputs(strip_compression(sparse), x)
    tolerance = 2e-2 if "mixed" in maker.__name__ else 1e-5
    for one, other in zip(outputs(sparse, x), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    traced = tf.function(lambda inputs: sparse(inputs, training=False), autograph=False)(tensors(x))
    for one, other in zip(keras.tree.flatten(traced), expected, strict=True):
        one = np.asarray(keras.ops.cast(one, "float64"))
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    small.finalize()
    for one, other in zip(outputs(small, x), outputs(plain, x), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_inference_is_one_function_eagerly_in_graphs_and_under_xla():
    small = compress(_net(), "al0", ratio=0.3)
    small.compile("sgd", LOGITS, metrics=["accuracy"])
    raw = small(ROWS, training=True)
    expected = np.asarray(strip_compression(small)(ROWS))
    assert np.abs(raw - expected).max() > 0.1
    with small.deployed():
        held = small(ROWS)
    xla = tf.function(lambda x: small(x, training=False), jit_compile=True, autograph=False)
    for found in (small(ROWS), held, xla(tf.constant(ROWS)), small.predict(ROWS, verbose=0)):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    accuracy = small.evaluate(ROWS, LABELS, verbose=0, return_dict=True)["accuracy"]
    report = evaluate_robustness(small, (ROWS, LABELS), attacks=FGSM(epsilon=0.05), verbose=0)
    stripped = strip_compression(small)
    plain = evaluate_robustness(stripped, (ROWS, LABELS), attacks=FGSM(epsilon=0.05), verbose=0)
    assert report.clean_accuracy == pytest.approx(accuracy) == plain.clean_accuracy
    assert report.robust_accuracy == plain.robust_accuracy


@pytest.mark.parametrize(
    "arguments", [{}, {"kernel_regularizer": "l2"}, {"activity_regularizer": "l1"}]
)
def test_without_attack_at_ratio_1_training_is_that_of_keras(arguments):
    plain, small = _net(**arguments), compress(_net(**arguments), "al0", ratio=1.0)
    histories = []
    for model in (plain, small):
        model.compile(keras.optimizers.SGD(0.5), LOGITS, metrics=["accuracy"])
        keras.utils.set_random_seed(5)
        fitted = model.fit(ROWS, LABELS, 16, 2, 0, validation_data=(ROWS, LABELS))
        histories.append(fitted.history)
    assert histories[0].keys() == histories[1].keys()
    for mine, theirs in zip(strip_compression(small).weights, plain.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-7)
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=1e-5)


def test_a_regulariser_sees_the_composed_kernel_and_a_constraint_the_whole_one():
    small = compress(_net(kernel_regularizer="l2"), "atmc", ratio=1.0)
    kernel = small.kernels[0]
    kernel.variables["C"].assign(keras.ops.ones_like(kernel.variables["C"]))
    whole = np.asarray(kernel.compose())
    assert float(sum(small.losses)) == pytest.approx(0.01 * np.square(whole).sum(), rel=1e-5)
    bound = compress(_net(kernel_constraint="non_neg"), "atmc", ratio=0.5)
    assert list(bound.kernels[0].variables) == ["W"]
    assert "kernel_constraint" in bound.compression_report().layers[0].reason
    bound.compile("adam", LOGITS)
    bound.fit(ROWS, LABELS, verbose=0)
    assert np.asarray(bound.kernels[0].compose()).min() >= 0


@keras.saving.register_keras_serializable(package="test_one_function")
class WithOwnSteps(Own):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 1000.0 + super().compute_loss(x, y, y_pred, sample_weight, training)

    def train_step(self, data):
        raise RuntimeError("not to be called")


def test_an_own_loss_is_used_and_own_steps_are_named():
    x = keras.Input((6,))
    with pytest.warns(UserWarning, match=r"train_step\(\).*not called"):
        small = compress(WithOwnSteps(x, layers.Dense(3)(x)), "al0", ratio=0.5)
    small.compile("adam", LOGITS)
    history = small.fit(ROWS, LABELS, verbose=0, validation_data=(ROWS, LABELS)).history
    assert 1000 < history["loss"][0] < 1010 and 1000 < history["val_loss"][0] < 1010
    assert "train_step()" in str(small.compression_report())


def _two_outputs():
    keras.utils.set_random_seed(0)
    x = keras.Input((6,))
    y = layers.Dense(8, activation="relu")(x)
    return keras.Model(x, [layers.Dense(3, name="cls")(y), layers.Dense(1, name="reg")(y)])


@pytest.mark.parametrize("attack", [None, FGSM(epsilon=0.1)])
def test_losses_metrics_and_history_go_by_the_names_of_the_outputs(attack):
    small, plain = compress(_two_outputs(), "al0", ratio=1.0, attack=attack), _two_outputs()
    targets = {"cls": LABELS, "reg": ROWS[:, :1]}
    for model in (small, plain):
        losses, metrics = {"cls": LOGITS, "reg": "mse"}, {"cls": ["accuracy"], "reg": ["mae"]}
        model.compile("sgd", losses, metrics=metrics, loss_weights={"cls": 2.0, "reg": 0.5})
    history = small.fit(ROWS, targets, verbose=0).history
    own = {name for name in history if name.startswith("robust")}
    assert set(history) - own == set(plain.fit(ROWS, targets, verbose=0).history)
    assert own == (set() if attack is None else {"robust_loss"})
    if attack is None:
        for mine, theirs in zip(strip_compression(small).weights, plain.weights, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_wrapper_finds_layers_exports_and_refuses_hdf5(tmp_path):
    small = compress(_net(), "atmc", ratio=0.3, attack=PGD(epsilon=0.1, steps=2))
    small.compile("sgd", LOGITS)
    small.fit(ROWS, LABELS, verbose=0)
    names = [layer.name for layer in small.model.layers]
    assert small.get_layer(names[0]) is small.model.layers[0]
    assert small.get_layer(index=1) is small.model.layers[1]
    with pytest.raises(ValueError, match=r"\.keras.*strip_compression"):
        small.save(tmp_path / "model.h5")
    small.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    served = loaded.serve(ROWS)
    np.testing.assert_allclose(served, small.predict(ROWS, verbose=0), rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "model.h5").exists()


def test_validation_data_out_of_bounds_are_called_so_in_few_words():
    bounds = ([-2.1179039478302, -2.03571438789367], [2.64000010490417, 2.42857146263122])
    pairs, labels = RNG.uniform(size=(16, 2)).astype(np.float32), LABELS[:16]
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3)])
    small = compress(model, "al0", ratio=1.0, attack=FGSM(epsilon=0.1, bounds=bounds))
    small.compile("sgd", LOGITS)
    with pytest.raises(ValueError, match="^In the validation data: ") as found:
        small.fit(pairs, labels, verbose=0, validation_data=(9 * pairs, labels))
    assert len(str(found.value)) < 300 and "-2.118" in str(found.value)
    with pytest.raises(ValueError, match="^Inputs must be finite"):
        small.fit(9 * pairs, labels, verbose=0)


def test_a_compressed_model_with_state_of_its_own_is_saved_whole(tmp_path):
    for maker in MODELS:
        if maker.__name__ in ("own_state", "adapted_normalisation", "looked_up_letters"):
            small = compress(make(maker), "atmc", ratio=1.0, schedule="constant")
            small.save(tmp_path / "small.keras")
            again = keras.saving.load_model(tmp_path / "small.keras")
            for one, other in zip(
                outputs(again, MODELS[maker]), outputs(small, MODELS[maker]), strict=True
            ):
                np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
