# SPDX-License-Identifier: Apache-2.0
"""The model that trains adversarially under constraints."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc import attacks, methods, tasks
from tfmot_atmc.compression.attacked import (
    adversarial,
    part_of_the_way,
    reported_metrics,
    task,
    uncounted,
    unpacked,
    within_bounds,
)
from tfmot_atmc.compression.report import CompressionReport, compression_report
from tfmot_atmc.compression.step import (
    check_distributed,
    composed_in_training,
    descend,
    forward,
    own_variables,
    weight_gradients,
)
from tfmot_atmc.compression.wrapper import ModelWrapper, dropped_methods
from tfmot_atmc.compression.wrapping import (
    composed_kernels,
    constrained,
    counted,
    frozen_layers,
    holds_composed,
    plain_layers,
    trainable_again,
    wrap_kernels,
)
from tfmot_atmc.constraints.base import Moment
from tfmot_atmc.methods.objectives import get_objective
from tfmot_atmc.utils import distribution
from tfmot_atmc.utils.keras_internals import (
    BuiltFromOwnBatch,
    layer_state,
    loss_tracker,
    place_randomness,
    slots_of,
)
from tfmot_atmc.utils.tracing import within_xla


@keras.saving.register_keras_serializable(package="tfmot_atmc")
class CompressedModel(BuiltFromOwnBatch, ModelWrapper):
    """A Keras model whose kernels are composed, constrained and adversarially trained.

    Made by `tfmot_atmc.compress`; behaves like any Keras model. One train step attacks the batch,
    takes an optimizer step on the objective, and projects the kernels onto their constraints.

    `evaluate` and validation report the compiled metrics on clean inputs, and `robust_loss` and,
    for classifiers, `robust_accuracy` on inputs attacked by `validation_attack`. Like `predict`
    they look at the model with its final budget, so the best checkpoint is the best to strip.
    Losses are means over examples, as Keras reports them.

    Args:
        model: a built Keras model, which is changed in place: its kernels are replaced.
        method: a `Method`.
        attack: None for clean training, or an `Attack` for training.
        validation_attack: the attack for evaluation; None for `attack`, or for what measures it
            where that is another (`Attack.for_validation`).
        objective: an `Objective`, or the name of one; None for the method's own.
        attack_warmup: optimizer steps over which perturbations grow linearly to their full size.
        seed: seed of the attacks' randomness.
        selected: indices of the layers (in the model's flat order) to compress; None for all.

    Raises:
        ValueError: if no layer can be compressed, or the method trains on clean inputs only and an
            attack is given.
    """

    def __init__(
        self,
        model: keras.Model,
        method: Any,
        *,
        attack: Any = None,
        validation_attack: Any = None,
        objective: Any = None,
        attack_warmup: int = 0,
        seed: int = 0,
        selected: Sequence[int] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(name=name or model.name, **kwargs)
        self.model = model
        self.method = methods.get(method)
        self.attack: attacks.Attack | None = None if attack is None else attacks.get(attack)
        self.attack = self.method.attack_policy(self.attack)
        self.validation_attack: attacks.Attack | None
        if validation_attack is not None:
            self.validation_attack = attacks.get(validation_attack)
        else:
            self.validation_attack = self.attack and self.attack.for_validation()
        tasks.check_attack(self.attack, self.validation_attack)
        self.objective = get_objective(objective or self.method.objective or "adversarial")
        self.attack_warmup = int(attack_warmup)
        self.seed = int(seed)
        self.selected = None if selected is None else sorted(int(i) for i in selected)
        kernels, decisions = wrap_kernels(model, self.method, self.selected)
        if not kernels:
            reasons = "; ".join(f"{d.layer}: {d.reason}" for d in decisions) or "no weights"
            raise ValueError(
                f"Model '{model.name}' has no compressible layer ({reasons}). Compressible are "
                "Dense, Conv1D, Conv2D, depthwise convolutions, and layers with "
                "get_compressible_weights()."
            )
        # Kept out of Keras's attribute tracking: the layers and variables are tracked already.
        self.__dict__["_kernels"] = tuple(kernels)
        self.__dict__["_decisions"] = tuple(decisions)
        self._build_state()
        self.built = True

    def _build_state(self) -> None:
        def state(**arguments: Any) -> keras.Variable:
            return self.add_weight(**{"dtype": "float32", "trainable": False, **arguments})

        self._step = state(name="step", shape=(), dtype="int32", initializer="zeros")
        self._horizon = state(name="horizon", shape=(), dtype="int32", initializer="zeros")
        self._diverged = state(name="diverged", shape=(), dtype="bool", initializer="zeros")
        constraints = self.method.constraints()
        for constraint in constraints:
            factors = counted(self.kernels, role=constraint.role)
            constraint.build(factors, self.dense_size, state)
        self.__dict__["_constraints"] = tuple(constraints)
        if self.validation_attack is not None or self.attack is not None:
            self._robust_loss = keras.metrics.Mean(name="robust_loss")
            self._robust_accuracy = keras.metrics.Mean(name="robust_accuracy")

    # --- what it consists of ------------------------------------------------------------------

    @property
    def constraints(self) -> tuple:
        """The constraints, in the order in which they project."""
        return self._constraints

    @property
    def dense_size(self) -> int:
        """Number of parameters of the dense kernels that are compressed."""
        return sum(int(np.prod(kernel.shape)) for kernel in self.kernels)

    @property
    def bits(self) -> int:
        """Bits of the codebooks; 32 when there are none."""
        return min((getattr(c, "bits", 32) for c in self.constraints), default=32)

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return int(self._step.numpy())

    @property
    def horizon(self) -> int:
        """Planned number of optimizer steps; 0 when unknown."""
        return int(self._horizon.numpy())

    @property
    def diverged(self) -> bool:
        """Whether an update was left out because the loss or its gradient was not finite."""
        return bool(self._diverged.numpy())

    def plan(self, steps: int) -> None:
        """Sets the planned number of optimizer steps, to which schedules refer, also in `fit`."""
        self._horizon.assign(steps)
        self.__dict__["_planned_by_hand"] = True

    def keeps_its_plan(self) -> bool:
        """Whether `fit` follows the plan that there is: made by hand, or of a run that goes on."""
        by_hand = self.__dict__.get("_planned_by_hand", False) and self.step < self.horizon
        now = self._progress()
        return bool(self.horizon) and (by_hand or self.__dict__.get("_before_fit", now) != now)

    def _progress(self) -> tuple[int, int]:
        return self.step, self.horizon

    def _factors(self) -> list:
        return [factor for kernel in self.kernels for factor in kernel.factors]

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """Variables that training moves: no fixed factors, and others as the method says."""
        moved = {id(f.variable): f.role != "fixed" for f in self._factors()}
        moved |= {id(variable): False for variable in own_variables(self)}
        return [
            variable
            for variable in super().trainable_variables
            if moved.get(id(variable), self.method.trains(variable.name))
        ]

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        with composed_in_training(self) if training else self.deployed():
            return self.model(inputs, training=training)

    def deployed(self) -> contextlib.AbstractContextManager[None]:
        """Composes the kernels as they would be deployed now, once for all calls in the context.

        The budget and the codebook hold in them. Each call in inference does so by itself; within a
        context many calls, such as an attack's, do it once. In a graph the context must be entered
        where the calls are traced, and outside of loops.
        """
        if holds_composed(self.kernels):
            return contextlib.nullcontext()
        return composed_kernels(self.kernels, self._deployed())

    def summary(self, *args: Any, **kwargs: Any) -> None:
        """Prints the summary of the wrapped model."""
        self.model.summary(*args, **kwargs)

    def compression_report(self) -> CompressionReport:
        """Returns what was touched, what was left alone and why, and where the nonzeros sit."""
        report = compression_report(self.kernels, self._decisions, self.bits, self.model.weights)
        return replace(report, dropped=dropped_methods(self.model) or "")

    # --- constraints --------------------------------------------------------------------------

    def finalized_factors(self) -> list[np.ndarray]:
        """Returns feasible factor values: all constraints hold at once, exactly."""
        values = [keras.ops.convert_to_numpy(f.variable) for f in self._factors()]
        # Sparsity before values: the codebook keeps zeros, and nonzeros nonzero.
        for constraint in reversed(self.constraints):
            values = constrained(self.kernels, constraint.finalized, values, constraint.role)
        for constraint in self.constraints:
            violated = constraint.violation(counted(self.kernels, values, constraint.role))
            if violated:
                raise ValueError(f"{type(constraint).__name__} does not hold: {violated}.")
        return values

    def finalize(self) -> None:
        """Makes the constraints hold exactly, now, in the model's own variables."""
        values = self.finalized_factors()
        for factor, value in zip(self._factors(), values, strict=True):
            factor.variable.assign(value)
        for constraint in self.constraints:
            constraint.adopt(counted(self.kernels, values, constraint.role))

    def apply_constraints(self, gradients: Sequence[tf.Tensor] | None = None) -> None:
        """Projects the factors; the last line of a custom training loop's step.

        Args:
            gradients: one for every factor that counts, needed for growth by gradient only; under a
                strategy, reduced over the distribution.
        """
        distribution.together(self._project, gradients)

    def _project(self, gradients: Sequence[tf.Tensor] | None) -> None:
        given = None if gradients is None else [distribution.one(g) for g in gradients]
        moment = self._moment()
        for constraint in self.constraints:
            constraint.project(moment, given if constraint.role == "weight" else None)
        for constraint in self.constraints:
            constraint.after_projection(moment)
        optimizer = getattr(self, "optimizer", None)
        for variable, mask in [pair for c in self.constraints for pair in c.cleared()]:
            for slot in [] if optimizer is None else slots_of(optimizer, variable):
                slot.assign(tf.where(mask, slot.value, tf.zeros_like(slot.value)))
        self._step.assign_add(1)

    def _moment(self) -> Moment:
        compiled = bool(getattr(self, "jit_compile", False))
        return Moment(self._step.value, self._horizon.value, compiled)

    def _deployed(self) -> list[tf.Tensor]:
        values = [factor.read() for factor in self._factors()]
        compiled = bool(getattr(self, "jit_compile", False)) or within_xla()
        for constraint in reversed(self.constraints):
            deploy = partial(constraint.deploy, compiled=compiled)
            values = constrained(self.kernels, deploy, values, constraint.role)
        return values

    # --- Keras's steps ------------------------------------------------------------------------

    def _attacked(self, attack: attacks.Attack, x: Any, y: Any, salt: int) -> Any:
        step = distribution.own_step(tf.cast(self._step, tf.int64))
        seed = tf.constant(self.seed + salt, tf.int64)
        return adversarial(self, attack, x, y, tf.stack([seed, step]))

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, sample_weight = unpacked(self, data)
        check_distributed(self.optimizer, self.attack)
        raw = x if self.attack is None else within_bounds(self.attack, x)
        x = raw if self.attack is None else self.attack.inputs(raw, training=True)
        losses: dict[int, tuple] = {}  # each with the penalties of its own pass

        def loss_of(targets: Any, outputs: Any) -> tf.Tensor:
            tasks.check_loss(self.loss, outputs)
            loss = self.compute_loss(x, targets, outputs, sample_weight, training=True)
            losses[id(outputs)] = distribution.undivided(loss), outputs
            return losses[id(outputs)][0]

        share, before = distribution.share_of_batch(x), layer_state(self.model)
        place_randomness(self.model, distribution.own_step(tf.convert_to_tensor(self._step.value)))
        with tf.GradientTape() as tape:
            with composed_in_training(self):
                x_adversarial = x
                if self.attack is not None:
                    with tape.stop_recording():
                        x_adversarial = self._warmed(x, self._attacked(self.attack, raw, y, salt=0))
                result = self.objective(forward(self), loss_of, x, x_adversarial, y)
                clean, attacked = result.clean_outputs, result.adversarial_outputs
                with tape.stop_recording():
                    if attacked is not None and id(attacked) not in losses:
                        loss_of(y, attacked)
                    clean = self.model(x, training=False) if clean is None else clean
            moment = self._moment()
            penalties = [constraint.penalty(moment) for constraint in self.constraints]
            total = tf.add_n([result.loss, *[p for p in penalties if p is not None]])
            scaled = self.optimizer.scale_loss(total)
        gradients = weight_gradients(self, tape, scaled)
        total = descend(self, gradients, total, before, share)
        robust = set[str]()
        if self.attack is not None and attacked is not None:
            robust = self._update_robust(x, y, attacked, losses[id(attacked)][0])
        loss_tracker(self).update_state(total, distribution.examples(x))
        return reported_metrics(self.compute_metrics(x, y, clean, sample_weight), robust)

    def _warmed(self, x: Any, x_adversarial: Any) -> Any:
        if not self.attack_warmup:
            return x_adversarial
        share = tf.minimum(1.0, tf.cast(self._step + 1, tf.float32) / self.attack_warmup)
        return part_of_the_way(x, x_adversarial, share)

    def test_step(self, data: Any) -> dict[str, Any]:
        x, y, sample_weight = unpacked(self, data)
        x, attack = x if self.attack is None else self.attack.inputs(x), self.validation_attack
        x = x if attack is None else within_bounds(attack, x)
        with composed_kernels(self.kernels, self._deployed()):
            outputs = self.model(x, training=False)
            tasks.check_loss(self.loss, outputs)
            loss, reported = self._loss_in_test(x, y, outputs, sample_weight), set[str]()
            if attack is not None:
                attacked = self._attacked(attack, x, y, salt=1)
                robust = self.model(attacked, training=False)
                with uncounted(self):
                    robust_loss = self._loss_in_test(x, y, robust, sample_weight)
                reported = self._update_robust(x, y, robust, robust_loss)
        loss_tracker(self).update_state(loss, distribution.examples(x))
        return reported_metrics(self.compute_metrics(x, y, outputs, sample_weight), reported)

    def _loss_in_test(self, x: Any, y: Any, outputs: Any, sample_weight: Any) -> tf.Tensor:
        return distribution.undivided(self.compute_loss(x, y, outputs, sample_weight, False))

    def predict_step(self, data: Any) -> Any:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with composed_kernels(self.kernels, self._deployed()):
            return self.model(x, training=False)

    def _update_robust(self, x: Any, y: Any, outputs: Any, loss: tf.Tensor) -> set[str]:
        """Updates the robust metrics; returns the names of those that make sense here."""
        self._robust_loss.update_state(loss, distribution.examples(x))
        correct = task(self, y, outputs).correct(y, outputs)
        if correct is None:
            return {"robust_loss"}
        self._robust_accuracy.update_state(correct)
        return {"robust_loss", "robust_accuracy"}

    # --- fit and saving -----------------------------------------------------------------------

    def _own_batch(self, iterator: Any) -> Any:
        return distribution.own_batch(self.distribute_strategy, iterator)

    def get_config(self) -> dict[str, Any]:
        with plain_layers([kernel.layer for kernel in self.kernels]):
            model = keras.saving.serialize_keras_object(self.model)
        return {
            "name": self.name,
            "model": model,
            "method": keras.saving.serialize_keras_object(self.method),
            "attack": self.attack and attacks.serialize(self.attack),
            "validation_attack": self.validation_attack
            and attacks.serialize(self.validation_attack),
            "objective": keras.saving.serialize_keras_object(self.objective),
            "attack_warmup": self.attack_warmup,
            "seed": self.seed,
            "selected": self.selected,
            "frozen": frozen_layers(self.model, self.kernels),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> CompressedModel:
        """Rebuilds the model; its weights are loaded afterwards."""
        model = keras.saving.deserialize_keras_object(config["model"], custom_objects)
        config = {**config, "model": model}
        with trainable_again(model, config.pop("frozen", ())):
            return cls(**config)
