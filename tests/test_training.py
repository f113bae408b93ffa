# SPDX-License-Identifier: Apache-2.0
"""A compressed model under Keras's own compile, fit, evaluate and predict."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tfmot_atmc.callbacks import UpdateCompression
from tfmot_atmc.objectives import AdversarialLoss

from tfmot_atmc import compress, datasets, strip_compression
from tfmot_atmc.attacks import FGSM, PGD
from tfmot_atmc.constraints import CubicBudget, GradientGrowth
from tfmot_atmc.methods import ATMC

layers = keras.layers
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FAST = FGSM(epsilon=0.1)


@pytest.fixture(scope="module")
def digits():
    data = datasets.load("digits", limit=64)
    return data.x_train[:64], data.y_train[:64]


def _model(activation=None, units=10, **dense):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(units, activation=activation, **dense),
        ]
    )


def _compiled(model=None, method=None, attack=FAST, loss=LOGITS, optimizer=None, **options):
    method = method or ATMC(ratio=0.2, schedule="constant")
    names = ("objective", "validation_attack", "seed", "attack_warmup")
    wrapped = {name: options.pop(name) for name in names if name in options}
    small = compress(model or _model(), method, attack=attack, **wrapped)
    small.compile(optimizer or keras.optimizers.SGD(0.1), loss, metrics=["accuracy"], **options)
    return small


class _Watch(keras.callbacks.Callback):
    """Records, after every step, nonzeros and the largest number of distinct values."""

    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        values = [k.numpy() for kernel in self.model.kernels for k in kernel.variables.values()]
        distinct = max(np.unique(v[v != 0]).size for v in values)
        self.seen.append((sum(np.count_nonzero(v) for v in values), distinct))


def test_arrays_datasets_and_py_datasets_train_to_the_same_weights(digits):
    x, y = digits

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return x[16 * i : 16 * i + 16], y[16 * i : 16 * i + 16]

    results = []
    start = _model()
    for data in ((x, y), tf.data.Dataset.from_tensor_slices((x, y)).batch(16), Batches()):
        small = _compiled(start)
        given = {"batch_size": 16} if isinstance(data, tuple) else {}
        history = small.fit(*(data if given else (data,)), shuffle=False, verbose=0, **given)
        assert set(history.history) == {"accuracy", "loss", "robust_accuracy", "robust_loss"}
        assert small.step == 4
        results.append(small.get_weights())
        evaluated = small.evaluate(*(data if given else (data,)), verbose=0, return_dict=True)
        assert evaluated["robust_accuracy"] <= evaluated["accuracy"]
        assert evaluated["robust_loss"] >= evaluated["loss"]
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_both_constraints_hold_after_every_step_and_exactly_at_the_end(digits):
    small = _compiled(method=ATMC(ratio=0.1, bits=2, schedule="constant", codebook_begin=2))
    watch, budget = _Watch(), int(0.1 * small.dense_size)
    small.fit(*digits, batch_size=16, epochs=2, callbacks=[watch, UpdateCompression()], verbose=0)
    assert [nonzeros for nonzeros, _ in watch.seen] == [budget] * 8
    assert all(distinct <= 4 for _, distinct in watch.seen[2:]) and watch.seen[0][1] > 4
    report = small.compression_report()
    assert report.nonzeros == budget and report.max_distinct <= 4
    x = digits[0]
    plain = strip_compression(small)
    np.testing.assert_allclose(plain(x), small.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


def test_validation_is_of_the_model_that_stripping_would_give(digits):
    x, y = digits
    method = ATMC(ratio=0.1, schedule=CubicBudget(0.5, 0, 100))
    small = _compiled(method=method, attack=None)
    for start in range(0, 64, 16):  # `fit` would finish
        small.train_on_batch(x[start : start + 16], y[start : start + 16])
    assert small.compression_report().nonzeros > int(0.1 * small.dense_size)
    plain = strip_compression(small)
    plain.compile(loss=LOGITS, metrics=["accuracy"])
    expected = plain.evaluate(x, y, verbose=0, return_dict=True)
    found = small.evaluate(x, y, verbose=0, return_dict=True)
    assert found["accuracy"] == expected["accuracy"]
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)


def test_sample_and_class_weights_weigh_the_loss(digits):
    x, y = digits
    for weights in ({"sample_weight": np.zeros(64)}, {"class_weight": dict.fromkeys(range(10), 0)}):
        small = _compiled(method="da")
        before = small.model.get_weights()
        history = small.fit(x, y, batch_size=32, verbose=0, **weights).history
        assert history["loss"] == [0.0]
        for mine, then in zip(small.model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(mine, then)
    weights = np.random.default_rng(0).uniform(size=64).astype(np.float32)
    small = _compiled(method="da", attack=None)
    logits = small.predict(x, verbose=0)
    per_example = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits).numpy()
    found = small.evaluate(x, y, sample_weight=weights, batch_size=64, verbose=0, return_dict=True)
    np.testing.assert_allclose(found["loss"], np.mean(weights * per_example), rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=0.5, weight_decay=1e-3),
        lambda: keras.optimizers.RMSprop(1e-3, global_clipnorm=1.0, use_ema=True),
    ],
)
def test_optimizers_with_accumulation_clipping_and_decay_keep_the_constraints(optimizer, digits):
    small = _compiled(optimizer=optimizer())
    watch = _Watch()
    before = small.get_weights()[0].copy()
    small.fit(*digits, batch_size=16, callbacks=[watch, UpdateCompression()], verbose=0)
    budget = int(0.2 * small.dense_size)
    assert all(nonzeros <= budget for nonzeros, _ in watch.seen)
    assert np.abs(small.get_weights()[0] - before).max() > 0
    report = small.compression_report()
    assert report.nonzeros <= budget


@pytest.mark.parametrize("kind", ["one_hot", "softmax", "listed", "binary", "sigmoid", "mse"])
def test_losses_of_every_kind_are_attacked(kind, digits):
    x, y = digits
    losses = keras.losses
    model, loss, target = {
        "one_hot": (_model(), losses.CategoricalCrossentropy(from_logits=True), np.eye(10)[y]),
        "softmax": (_model("softmax"), "sparse_categorical_crossentropy", y),
        "listed": (_model(), [LOGITS], y),
        "binary": (_model(units=1), losses.BinaryCrossentropy(from_logits=True), y > 4),
        "sigmoid": (_model("sigmoid", units=1), "binary_crossentropy", y > 4),
        "mse": (_model(units=1), "mse", y / 10),
    }[kind]
    target = np.asarray(target, np.float32 if target.dtype != y.dtype else y.dtype)
    small = compress(model, "atmc", ratio=0.5, schedule="constant", attack=FGSM(epsilon=0.2))
    small.compile(keras.optimizers.SGD(0.01), loss)
    history = small.fit(x, target, batch_size=32, verbose=0).history
    found = small.evaluate(x, target, verbose=0, return_dict=True)
    assert found["robust_loss"] > found["loss"] > 0
    assert np.isfinite(history["loss"][0])
    assert ("robust_accuracy" in found) == (kind != "mse")


def test_the_attack_looks_behind_a_saturated_softmax(digits):
    x, y = digits
    logits = _model()
    logits.layers[-1].set_weights([1000 * w for w in logits.layers[-1].get_weights()])
    soft = _model("softmax")
    soft.set_weights(logits.get_weights())
    found = []
    for model, loss in ((logits, LOGITS), (soft, keras.losses.SparseCategoricalCrossentropy())):
        small = _compiled(model, "da", FGSM(epsilon=0.1), loss)
        found.append(small.evaluate(x, y, verbose=0, return_dict=True)["robust_accuracy"])
    assert found[0] == found[1]


def test_logits_with_a_loss_for_probabilities_are_refused(digits):
    for loss in ("sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy()):
        with pytest.raises(ValueError, match="from_logits=True"):
            _compiled(loss=loss).fit(*digits, verbose=0)
    with pytest.raises(ValueError, match="from_logits=True"):
        _compiled(loss=keras.losses.SparseCategoricalCrossentropy()).evaluate(*digits, verbose=0)


def test_labels_that_do_not_match_the_loss_are_refused(digits):
    x, y = digits
    with pytest.raises(ValueError, match="shape|labels|rank"):
        _compiled().fit(x, np.eye(10)[y], verbose=0)
    with pytest.raises(ValueError, match="shape|columns|rank"):
        _compiled(loss=keras.losses.CategoricalCrossentropy(from_logits=True)).fit(x, y, verbose=0)


def test_inputs_outside_the_bounds_are_refused_in_fit_and_evaluate(digits):
    x, y = digits
    small = _compiled()
    before = small.get_weights()
    for call in (small.fit, small.evaluate):
        with pytest.raises(
            ValueError, match=r"within the bounds of the attack, \(0.0, 1.0\).*Scale the inputs"
        ):
            call(255 * x, y, verbose=0)
    with pytest.raises(ValueError, match="finite"):
        small.fit(np.full_like(x, np.nan), y, verbose=0)
    for now, then in zip(small.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    wide = _compiled(attack=FGSM(epsilon=8, bounds=(0, 255)))
    assert np.isfinite(wide.fit(255 * x, y, verbose=0).history["loss"][0])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_float32_factors_under_the_constraints(policy, digits):
    keras.config.set_dtype_policy(policy)
    try:
        model = _model()
    finally:
        keras.config.set_dtype_policy("float32")
    small = compress(
        model, "al0", ratio=0.2, bits=3, schedule="constant", codebook_begin=2, attack=FAST
    )
    optimizer = keras.optimizers.SGD(0.1)
    if policy == "mixed_float16":
        # A scale that overflows at first is lowered, and is no divergence.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**24)
    small.compile(optimizer, LOGITS, metrics=["accuracy"])
    history = small.fit(
        *digits, batch_size=8, epochs=4, callbacks=[UpdateCompression()], verbose=0
    ).history
    assert len(history["loss"]) == 4 and history["loss"][-1] < history["loss"][0]
    assert {v.dtype for kernel in small.kernels for v in kernel.variables.values()} == {"float32"}
    report = small.compression_report()
    assert report.nonzeros == int(0.2 * small.dense_size) and report.max_distinct <= 8
    plain = strip_compression(small)
    assert plain.layers[-1].compute_dtype == policy.split("_")[1]
    x = digits[0]
    np.testing.assert_allclose(
        plain.predict(x, verbose=0), small.predict(x, verbose=0), rtol=0.02, atol=0.02
    )


def test_compiled_with_xla_trains_to_the_same_weights(digits):
    start, results = _model(), []
    method = ATMC(0.2, schedule=CubicBudget(0.5, 0, 4), growth=GradientGrowth(0.3, 1, 2, 5))
    for jit in (False, True):
        attack = PGD(epsilon=0.1, steps=2)
        small = _compiled(start, method, attack, jit_compile=jit)
        small.fit(
            *digits,
            batch_size=16,
            epochs=2,
            shuffle=False,
            callbacks=[UpdateCompression()],
            verbose=0,
        )
        results.append(small.get_weights())
        assert small.compression_report().nonzeros <= int(0.2 * small.dense_size)
    differences = [
        float(np.abs(a.astype(np.float64) - b).max())
        for a, b in zip(*results, strict=True)
        if a.dtype == np.float32
    ]
    assert max(differences) < 1e-3


def test_objectives_mix_the_losses(digits):
    x, y = digits
    losses = {}
    start = _model()
    for objective in ("adversarial", "half", AdversarialLoss(1.0)):
        small = _compiled(start, "da", objective=objective, optimizer=keras.optimizers.SGD(0.0))
        name = objective if isinstance(objective, str) else "clean"
        history = small.fit(x, y, batch_size=64, verbose=0).history
        losses[name] = history["loss"][0]
        if name != "clean":
            np.testing.assert_allclose(history["robust_loss"][0], losses["adversarial"], rtol=1e-5)
    np.testing.assert_allclose(losses["half"], (losses["clean"] + losses["adversarial"]) / 2, 1e-5)
    assert losses["clean"] < losses["half"] < losses["adversarial"]
    with pytest.raises(ValueError, match="clean_weight"):
        AdversarialLoss(1.5)
    with pytest.raises(ValueError, match="adversarial.*half"):
        compress(start, "da", objective="both")


def test_attack_warmup_grows_the_perturbation(digits):
    x, y = digits
    start, losses = _model(), {}
    for warmup in (0, 4):
        still = keras.optimizers.SGD(0.0)
        small = _compiled(start, "da", attack_warmup=warmup, optimizer=still)
        losses[warmup] = small.fit(x, y, batch_size=64, epochs=5, verbose=0).history["loss"]
    assert losses[4][0] < losses[4][1] < losses[4][2] < losses[4][3]
    np.testing.assert_allclose(losses[4][3:], losses[0][3:], rtol=1e-5)


def test_early_stopping_and_checkpoints_see_robust_accuracy(digits, tmp_path):
    x, y = digits
    small = _compiled(optimizer=keras.optimizers.SGD(0.0))
    best = tmp_path / "best.keras"
    history = small.fit(
        x,
        y,
        validation_data=(x, y),
        epochs=5,
        callbacks=[
            keras.callbacks.EarlyStopping("val_robust_accuracy", patience=2),
            keras.callbacks.ModelCheckpoint(best, "val_robust_accuracy", save_best_only=True),
            UpdateCompression(),
        ],
        verbose=0,
    ).history
    assert len(history["val_robust_accuracy"]) in (3, 4)
    assert {"val_loss", "val_accuracy", "val_robust_loss"} <= set(history)
    again = keras.saving.load_model(best)
    assert strip_compression(again).count_params() == _model().count_params()


def test_fit_plans_its_own_steps_each_time(digits):
    x, y = digits
    small = _compiled(method=ATMC(ratio=0.1))
    small.fit(x, y, 16, 2, 0)
    assert small.horizon == 8 and small.step == 8
    assert small.compression_report().nonzeros <= int(0.1 * small.dense_size)
    small.fit(x, y, batch_size=16, epochs=3, verbose=0)
    assert small.horizon == small.step == 8 + 12
    later = _compiled(method=ATMC(ratio=0.1))
    later.fit(x, y, 16, epochs=3, initial_epoch=1, callbacks=[UpdateCompression()], verbose=0)
    assert later.horizon == 8 and later.step == 8
    planned = _compiled(method=ATMC(ratio=0.1))
    planned.plan(100)
    planned.fit(x, y, batch_size=16, verbose=0)
    assert planned.horizon == 100 and planned.step == 4


def test_a_schedule_in_fractions_needs_the_number_of_steps(digits):
    stream = tf.data.Dataset.from_tensor_slices(digits).batch(16).repeat()
    unknown = stream.filter(lambda x, y: True)
    small = _compiled(method=ATMC(ratio=0.1))
    for callbacks in (None, [UpdateCompression()]):
        with pytest.raises(ValueError, match="steps_per_epoch"):
            small.fit(unknown, callbacks=callbacks, verbose=0)
    small.fit(stream, steps_per_epoch=3, epochs=2, verbose=0)
    assert small.horizon == 6 and small.step == 6
    with pytest.raises(ValueError, match="steps_per_epoch"):
        small.fit(unknown, verbose=0)


def test_weights_that_a_callback_brings_back_are_finished_too(digits):
    x, y = digits
    found = []
    for order in (1, -1):
        keras.utils.set_random_seed(1)
        small = _compiled(method=ATMC(ratio=0.05, bits=2))
        stopping = keras.callbacks.EarlyStopping(
            "val_loss", mode="max", patience=5, restore_best_weights=True
        )  # the first epoch, at more nonzeros, comes back
        callbacks = [UpdateCompression(), stopping][::order]
        small.fit(x, y, 16, 4, 0, callbacks, validation_data=(x, y))
        assert small.step == 4 * (stopping.best_epoch + 1) < 16
        values = [np.asarray(f.variable) for f in small._factors()]
        assert sum(map(np.count_nonzero, values)) <= int(0.05 * small.dense_size)
        assert max(np.unique(v[v != 0]).size for v in values) <= 4
        found.append(values)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


class _Bomb(keras.callbacks.Callback):
    """Makes the loss overflow from a given batch on."""

    def __init__(self, batch, layer):
        super().__init__()
        self.batch, self.layer = batch, layer

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            self.kept = [w.numpy().copy() for w in self.model.weights]
            self.layer.fuse.assign(3e38)

    def on_train_batch_end(self, batch, logs=None):
        self.last = batch


@keras.saving.register_keras_serializable(package="test_training")
class _Fuse(layers.Layer):
    def build(self, shape):
        self.fuse = self.add_weight(shape=(), initializer="ones", trainable=False, name="fuse")

    def call(self, inputs):
        return inputs * self.fuse * self.fuse


@pytest.mark.parametrize("jit", [False, True])
def test_a_loss_that_is_not_finite_stops_training_with_the_last_good_weights(jit, digits, tmp_path):
    x = keras.Input((8, 8, 1))
    y = layers.BatchNormalization()(_Fuse()(layers.Conv2D(3, 3)(x)))
    model = keras.Model(x, layers.Dense(10)(layers.Flatten()(y)))
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    small = _compiled(model, ATMC(ratio=0.5, schedule="constant"), None, LOGITS, optimizer)
    small.jit_compile = jit
    bomb = _Bomb(2, small.model.layers[2])
    saved = tmp_path / "good.keras"
    with pytest.warns(UserWarning, match="diverged at step 3.*global_clipnorm"):
        small.fit(
            *digits, batch_size=8, epochs=3, verbose=0, callbacks=[UpdateCompression(saved), bomb]
        )
    assert bomb.last == 2 and small.diverged
    again = keras.saving.load_model(saved)
    names = [w.path for w in small.weights]
    assert [w.path for w in again.weights] == names
    for weight, loaded, kept in zip(small.weights, again.weights, bomb.kept, strict=True):
        if weight.path.split("/")[-1] not in ("step", "diverged", "fuse"):
            np.testing.assert_allclose(weight, kept, rtol=1e-6, err_msg=weight.path)
            np.testing.assert_array_equal(loaded, weight)


def test_stages_go_on_from_the_factors_of_the_one_before(digits):
    first = _compiled(method=ATMC(ratio=0.3, schedule="constant"))
    first.fit(*digits, batch_size=16, verbose=0)
    second = compress(first, ATMC(ratio=0.3, bits=2, schedule="constant", codebook_begin=0))
    for mine, theirs in zip(second._factors(), first._factors(), strict=True):
        np.testing.assert_array_equal(mine.variable, theirs.variable)
    assert second.step == 0 and second.bits == 2
    third = compress(first, "al0", ratio=0.1)
    x = digits[0]
    start = third(x, training=True)
    np.testing.assert_allclose(start, first.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


def test_a_custom_training_loop_ends_its_step_with_apply_constraints(digits):
    x, y = tf.constant(digits[0]), tf.constant(digits[1])
    small = compress(_model(), ATMC(ratio=0.1, bits=2, schedule="constant", codebook_begin=3))
    optimizer = keras.optimizers.SGD(0.1)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = LOGITS(y, small(FAST(small, x, y), training=True))
        optimizer.apply(tape.gradient(loss, small.trainable_variables), small.trainable_variables)
        small.apply_constraints()
        return loss

    losses = [float(step()) for _ in range(8)]
    assert losses[-1] < losses[0] and small.step == 8
    report = small.compression_report()
    assert report.nonzeros == int(0.1 * small.dense_size) and report.max_distinct <= 4
    small.finalize()
    plain = strip_compression(small)
    np.testing.assert_allclose(plain(x), small(x), rtol=1e-4, atol=1e-5)
