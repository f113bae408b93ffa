# SPDX-License-Identifier: Apache-2.0
"""The base class of all attacks: arguments, checks, seeds, and one trace per model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import surrogate
from tfmot_atmc.attacks.outputs import (
    any_batch,
    check_labels,
    cross_entropy,
    deployed,
    is_sparse,
    logits_function,
    logits_of,
    looks_like_probabilities,
)
from tfmot_atmc.attacks.problem import Leaves, Loss, Problem
from tfmot_atmc.attacks.traces import Traces
from tfmot_atmc.attacks.values import ordered_bounds, plain, radius, slack
from tfmot_atmc.utils.registry import Registry

__all__ = ["Attack", "logits_of", "looks_like_probabilities"]

# So many examples tell whether gradients are dead; in each step of a training a few.
_LOOKED_AT, _LOOKED_AT_EACH_STEP = 16, 4
# What tells whether an attack should look again is the same for all attacks on a model.
_LOOKS = Traces()


class _Compiled(NamedTuple):
    function: Callable[..., list[tf.Tensor]]
    num_classes: int | None


class Attack:
    """Searches, within a small ball around each input, for one that the model gets wrong.

    A new attack is a subclass with one method, `_perturb(problem, seed)`, and a `get_config` that
    adds its own arguments. By being defined it is known under its class name in lower case, and
    models trained with it can be loaded. The instance is called as `attack(model, x, y)`: eagerly
    on arrays or tensors, within a `tf.function`, or within `tf.function(jit_compile=True)`. Called
    eagerly, it traces once per model and kind of input and keeps the trace as long as the model
    lives. Treat an instance as immutable.

    Args:
        epsilon: radius of the ball in input units (8/255 for pixels in `[0, 1]`): a scalar, or for
            l-infinity also one value a channel, that is along the last axis of every floating
            input.
        norm: `"linf"` or `"l2"`; the l2 norm of an example is taken over all its inputs.
        targeted: the labels given are the classes wanted: the loss is minimised.
        bounds: pair `(low, high)` of the least and greatest legal input; scalars, values a
            channel, or None for no bound.
        seed: seed of all randomness; the same seed gives the same result.
        loss: callable `(y, logits) -> [batch]` to be maximised; None is the cross-entropy. If it
            has a method `wrong(y, logits)`, bool `[batch]`, that says what a success is, and
            labels need not be classes.
        backward_slope: slope, in the backward pass alone, of ReLUs that are off and of what
            max-pooling leaves out, in (0, 1]; None for the plain gradients. `"auto"` looks at the
            gradient first, and takes a slope of 0.05 where most of it is exactly zero, as in a
            network of few weights: in a graph in place of the plain gradients, called eagerly for
            the examples that they leave, so that the result is never weaker than theirs.

    Raises:
        TypeError: an argument that this kind of attack does not have.
        ValueError: `epsilon` is negative or not finite, `norm` is unknown, `bounds` is not an
            ordered pair, or `backward_slope` is none of these.
    """

    registry = Registry("attack")
    """The classes of all attacks."""

    needs_gradients = True
    """False for attacks that only look at outputs, and so work on a file or a service."""

    any_loss = False
    """True for attacks that raise whatever loss they are given; others look at classes."""

    converges = False
    """True for attacks that take steps, and that more steps bring closer to a maximum."""

    _without: tuple[str, ...] = ()
    """Arguments of this class that a subclass does not have."""

    _default_slope: str | None = "auto"
    """`backward_slope` where none is given."""

    _looks_twice = True
    """Whether, called eagerly, `"auto"` searches again with a slope; not where a call is kept."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.registry.add(cls)

    def __init__(
        self,
        *,
        epsilon: Any,
        norm: str = "linf",
        targeted: bool = False,
        bounds: tuple[Any, Any] | None = (0.0, 1.0),
        seed: int = 0,
        loss: Loss | None = None,
        backward_slope: Any = "default",
    ) -> None:
        sloped = backward_slope not in ("default", self._default_slope)
        others = (("norm", norm != "linf"), ("targeted", targeted), ("backward_slope", sloped))
        for name, given in others:
            if given and name in self._without:
                raise TypeError(f"{type(self).__name__} has no argument `{name}`.")
        if norm not in ("linf", "l2"):
            raise ValueError(f"`norm` must be 'linf' or 'l2'. Received {norm!r}.")
        infinite = "epsilon" in self._without  # held back by a penalty, not by a ball
        self.epsilon = np.asarray(np.inf) if infinite else radius(epsilon, "epsilon")
        if norm == "l2" and self.epsilon.ndim:
            raise ValueError(f"With norm='l2' `epsilon` must be a scalar. Received {epsilon!r}.")
        self.norm = norm
        self.targeted = bool(targeted)
        self.bounds = ordered_bounds(bounds)
        if loss is not None and not callable(loss):
            raise TypeError(f"`loss` must be a callable (y, logits) -> [batch]. Received {loss!r}.")
        self.seed = int(seed)
        self.loss = loss
        self.backward_slope = surrogate.check_slope(
            self._default_slope if backward_slope == "default" else backward_slope
        )
        self._traces = Traces()

    def __call__(self, model: Callable[..., Any], x: Any, y: Any, *, seed: Any = None) -> Any:
        """Returns adversarial inputs.

        Args:
            model: Keras model, or any callable from inputs to logits `[batch, classes]`. A final
                softmax is looked through where it can be found (`logits_of`).
            x: array or tensor, or a nest of them, batch first. Only floating ones are perturbed.
            y: class indices `[batch]` or `[batch, 1]`, or one-hot or soft labels
                `[batch, classes]`; which one is told from the rank and the last axis.
            seed: None for the attack's own seed, an int, or an integer tensor of shape `[2]`,
                such as (seed, step) in a train step.

        Returns:
            Nest like `x`, without gradient: in the bounds exactly, and within `epsilon` of `x`
            to the rounding of its dtype.

        Raises:
            ValueError: eagerly, `x` holds a NaN or leaves the bounds, or a label is out of range.
                In a graph values cannot be looked at: call `check_inputs` on one batch before.
        """
        x = tf.nest.map_structure(tf.convert_to_tensor, x)
        y = tf.convert_to_tensor(y)
        seed = self._as_seed(seed)
        if not self._judges():
            is_sparse(y)
        if not tf.executing_eagerly():
            with deployed(model):
                return self._attack(self._problem(model, x, y), seed, self.backward_slope)
        self.check_inputs(x)
        both = self.backward_slope == "auto"
        slope = None if both else self.backward_slope
        compiled = self._compiled(model, x, y, slope)
        if not self._judges():
            check_labels(y, compiled.num_classes)
        leaves = compiled.function(tuple(tf.nest.flatten(x)), y, seed)
        found = tf.nest.pack_sequence_as(x, leaves)
        if both and self.needs_gradients and self._looks_twice and self.epsilon.any():
            found = self._looking_again(model, x, y, seed, found)
        return found

    def _judges(self) -> bool:
        return hasattr(self.loss, "wrong")

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        """Returns the perturbed leaves; the one method a new attack must write.

        Args:
            problem: loss, gradients and projection; `problem.x` are the clean leaves.
            seed: integer tensor `[2]`; derive others from it by `fold_in`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `_perturb`.")

    def inputs(self, x: Any, *, training: bool = False) -> Any:
        """Returns what the model is to see of `x`: all of it, unless an attack says otherwise.

        Args:
            x: inputs as given to the attack.
            training: they are those of a train step.
        """
        return x

    def parts_for(self, classes: int) -> dict[str, Attack]:
        """Returns the parts of an ensemble by name, in the order they run; none for one attack.

        Args:
            classes: number of classes of the model, on which the parts may depend.
        """
        return {}

    def for_validation(self) -> Attack:
        """Returns what measures a model that is trained with this attack: itself, in most cases."""
        return self

    def check_inputs(self, x: Any) -> None:
        """Raises ValueError where concrete floating inputs hold NaNs or leave the bounds.

        Args:
            x: nest of arrays or eager tensors.
        """
        low, high = self.bounds
        for leaf in tf.nest.flatten(x):
            value = np.asarray(leaf)
            if not tf.as_dtype(value.dtype).is_floating or not value.size:
                continue
            value = value.astype(np.promote_types(value.dtype, np.float32), copy=False)
            least, greatest = value.min(), value.max()
            if not (np.isfinite(least) and np.isfinite(greatest)):
                raise ValueError("The inputs of an attack must be finite. Received NaN or inf.")
            below = low is not None and (value < low - slack(low)).any()
            above = high is not None and (value > high + slack(high)).any()
            if below or above:
                raise ValueError(
                    f"The inputs span [{least:g}, {greatest:g}] but the bounds are "
                    f"({plain(low)}, {plain(high)}). Rescale the inputs, or pass "
                    f"`bounds=({least:g}, {greatest:g})` or the true legal range, with `epsilon` "
                    "in the same units."
                )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values (a custom loss as itself)."""
        low, high = self.bounds
        config = {
            "epsilon": plain(self.epsilon),
            "norm": self.norm,
            "targeted": self.targeted,
            "bounds": (plain(low), plain(high)),
            "seed": self.seed,
            "loss": self.loss,
        }
        # Left out where it is not set: studies are known by the configuration of their attacks.
        if self.backward_slope != self._default_slope:
            config["backward_slope"] = self.backward_slope
        return {name: value for name, value in config.items() if name not in self._without}

    @classmethod
    def takes(cls, argument: str) -> bool:
        """Returns whether this kind of attack has one of the arguments that most have.

        Args:
            argument: `"epsilon"`, `"norm"`, `"targeted"`, `"bounds"`, `"seed"` or `"loss"`.
        """
        return argument not in cls._without

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Attack:
        """Returns the attack whose `get_config` gave `config`."""
        return cls(**config)

    def with_loss(self, loss: Loss) -> Attack:
        """Returns the same attack on another loss.

        Args:
            loss: callable `(y, logits) -> [batch]` to be maximised.
        """
        return type(self).from_config({**self.get_config(), "loss": loss})

    def lengthened(self, times: int) -> Attack | None:
        """Returns the same attack with so many times the steps, each of the same size.

        Where classes are tried in turn it is one of them, so that a look at it is cheap. None where
        the attack does not take steps towards a maximum.

        Args:
            times: factor, at least 1.

        Example:
        >>> from tfmot_atmc.attacks import PGD
        >>> longer = PGD(epsilon=0.4, steps=5).lengthened(2)
        >>> longer.steps, longer.step_size
        (10, array(0.1))
        """
        if not self.converges:
            return None
        config = self.get_config()
        config["steps"] = times * config["steps"]
        fixed = {"step_size": plain(getattr(self, "step_size", None)), "unroll": False}
        fixed["num_targets"] = 1
        return self.from_config(config | {k: v for k, v in fixed.items() if k in config})

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Traces belong to this process and this instance: copies and pickles start without.
        return _rebuild, (type(self), self.get_config())

    def _problem(self, model: Callable[..., Any], x: Any, y: tf.Tensor) -> Problem:
        logits = logits_function(model)
        return Problem(
            lambda inputs: logits(self.inputs(inputs)),
            x,
            y,
            epsilon=self.epsilon,
            bounds=self.bounds,
            loss=self.loss or cross_entropy,
            norm=self.norm,
            targeted=self.targeted,
        )

    def _attack(self, problem: Problem, seed: tf.Tensor, slope: Any) -> Any:
        leaves = problem.x
        if self.epsilon.any():
            if slope == "auto" and self.needs_gradients:
                slope = surrogate.automatic(problem.first(_LOOKED_AT_EACH_STEP))
            if slope is not None and self.needs_gradients:
                problem = problem.with_slope(slope)
            leaves = [tf.stop_gradient(leaf) for leaf in self._perturb(problem, seed)]
        return problem.pack(leaves)

    def _looking_again(
        self, model: Callable[..., Any], x: Any, y: tf.Tensor, seed: tf.Tensor, found: Any
    ) -> Any:
        """Returns what plain gradients found, and with a slope where they fail and are dead."""
        kinds = tf.nest.map_structure(any_batch, (x, y))
        key = (type(self), self.targeted, self.loss, repr(kinds))
        look = _LOOKS.get(model, key, lambda reference: self._tracing_a_look(reference, kinds))
        dead, failed = look(*(tuple(tf.nest.flatten(nest)) for nest in (x, found)), y)
        rows = np.flatnonzero(failed)
        if not dead or not rows.size:
            return found
        part, labels = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), (x, y))
        compiled = self._compiled(model, part, labels, surrogate.SLOPE)
        leaves = compiled.function(tuple(tf.nest.flatten(part)), labels, seed)
        again = [
            tf.tensor_scatter_nd_update(old, rows[:, None], new)
            for old, new in zip(tf.nest.flatten(found), leaves, strict=True)
        ]
        return tf.nest.pack_sequence_as(x, again)

    def _tracing_a_look(self, reference: Callable[[], Any], kinds: Any) -> Any:
        """Returns a function that tells whether gradients are dead, and where an attack failed."""
        x_spec, y_spec = kinds

        def look(leaves: Any, found: Any, y: tf.Tensor) -> list[tf.Tensor]:
            x, found = (tf.nest.pack_sequence_as(x_spec, flat) for flat in (leaves, found))
            problem = self._problem(reference(), x, y)
            slope = surrogate.automatic(problem.first(_LOOKED_AT))
            attacked = self._problem(reference(), found, y)
            logits, _ = attacked.evaluate(attacked.x)
            dead = tf.constant(False) if slope is None else slope > 0
            return [dead, ~problem.succeeded(logits)]

        flat = tuple(tf.nest.flatten(x_spec))
        return tf.function(look, autograph=False).get_concrete_function(flat, flat, y_spec)

    def _as_seed(self, seed: Any) -> tf.Tensor:
        seed = tf.cast(tf.convert_to_tensor(self.seed if seed is None else seed), tf.int64)
        if seed.shape.rank == 0:
            return tf.stack([seed, tf.zeros([], tf.int64)])
        if seed.shape.as_list() != [2]:
            raise ValueError(f"`seed` must be an int or of shape [2]. Received {seed.shape}.")
        return seed

    def _compiled(self, model: Callable[..., Any], x: Any, y: tf.Tensor, slope: Any) -> _Compiled:
        """Returns the trace for this model and kind of input, for any batch size."""
        kinds = tf.nest.map_structure(any_batch, (x, y))
        return self._traces.get(
            model,
            (repr(self), slope, repr(kinds)),
            lambda reference: self._trace(reference, kinds, slope),
        )

    def _trace(self, reference: Callable[[], Any], kinds: Any, slope: Any) -> _Compiled:
        problems: list[Problem] = []
        x_spec, y_spec = kinds

        def run(inputs: tuple[tf.Tensor, ...], y: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
            model = reference()
            problem = self._problem(model, tf.nest.pack_sequence_as(x_spec, inputs), y)
            problems.append(problem)
            with deployed(model):
                return tf.nest.flatten(self._attack(problem, seed, slope))

        function = tf.function(run, autograph=False).get_concrete_function(
            tuple(tf.nest.flatten(x_spec)), y_spec, tf.TensorSpec([2], tf.int64)
        )
        num_classes = problems[-1].num_classes
        problems.clear()
        return _Compiled(function, num_classes)


def _rebuild(cls: type[Attack], config: dict[str, Any]) -> Attack:
    return cls.from_config(config)
