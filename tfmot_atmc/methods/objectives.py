# SPDX-License-Identifier: Apache-2.0
"""What an adversarial train step minimises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tfmot_atmc.attacks import logits_of, surrogate
from tfmot_atmc.attacks.trades import kl_divergence
from tfmot_atmc.utils.configurable import Configurable, get_configured

__all__ = ["AdversarialLoss", "Objective", "ObjectiveResult", "TradesLoss", "get_objective"]


def __dir__() -> list[str]:
    return __all__


class ObjectiveResult(NamedTuple):
    """Loss of one batch, and the outputs it was computed from (None where not needed)."""

    loss: tf.Tensor
    clean_outputs: Any
    adversarial_outputs: Any


class Objective(Configurable, kind="objective"):
    """The loss of a batch, from the clean and the adversarial inputs.

    Subclasses override `__call__`.
    """

    backward_slope: float | None = None
    """Slope, in the backward pass of the train step alone, of activations that are off."""

    def __call__(
        self,
        predict: Callable[[Any], Any],
        loss: Callable[[Any, Any], tf.Tensor],
        x: Any,
        x_adversarial: Any,
        y: Any,
    ) -> ObjectiveResult:
        """Returns the loss, and the outputs computed on the way.

        Args:
            predict: the model in training mode, from inputs to outputs.
            loss: the compiled loss with weights and regularisation, from `(y, outputs)` to a
                scalar. The regularisation is that of the last pass, so take it pass by pass.
            x: clean inputs.
            x_adversarial: adversarial inputs, the same structure.
            y: targets.
        """
        raise NotImplementedError


class AdversarialLoss(Objective, name="adversarial"):
    """A mix of the loss on clean and on adversarial inputs.

    `clean_weight * loss(x) + (1 - clean_weight) * loss(x_adversarial)`. Clean and adversarial
    inputs go through the model in two passes, so batch normalisation sees them apart.

    Args:
        clean_weight: in [0, 1]; 0 is the pure adversarial loss of the ATMC paper (equation 3), 0.5
            the loss of the authors' code on MNIST and CIFAR-10.
        backward_slope: slope, in the backward pass alone, of ReLUs that are off and of what
            max-pooling leaves out, in (0, 1]: what lies behind them in a sparse network learns too.
            None for the plain gradients. It needs a graph, so `run_eagerly=False`. The slope of the
            attack is an argument of the attack.

    Raises:
        ValueError: if `clean_weight` or `backward_slope` is out of range.
    """

    def __init__(self, clean_weight: float = 0.0, backward_slope: float | None = None):
        if not 0 <= clean_weight <= 1:
            raise ValueError(f"`clean_weight` must lie in [0, 1]. Received {clean_weight!r}.")
        if backward_slope == "auto":
            raise ValueError("`backward_slope` of an objective must be a number or None.")
        self.clean_weight = clean_weight
        self.backward_slope = surrogate.check_slope(backward_slope)

    def _arguments(self) -> dict[str, Any]:
        """Returns the arguments, without a slope that is none: studies know objectives by them."""
        found = super()._arguments()
        return {name: value for name, value in found.items() if value is not None}

    def __call__(
        self,
        predict: Callable[[Any], Any],
        loss: Callable[[Any, Any], tf.Tensor],
        x: Any,
        x_adversarial: Any,
        y: Any,
    ) -> ObjectiveResult:
        total = tf.constant(0.0)
        clean_outputs = adversarial_outputs = None
        if self.clean_weight > 0:
            clean_outputs = predict(x)
            total += self.clean_weight * loss(y, clean_outputs)
        if self.clean_weight < 1:
            adversarial_outputs = predict(x_adversarial)
            total += (1 - self.clean_weight) * loss(y, adversarial_outputs)
        return ObjectiveResult(total, clean_outputs, adversarial_outputs)


Objective.registry.add_preset("half", "adversarial", clean_weight=0.5)


class TradesLoss(Objective, name="trades"):
    """The loss on clean inputs plus a multiple of how far predictions move under attack.

    `loss(x) + beta * mean KL(softmax f(x) || softmax f(x_adversarial))`, with the gradient through
    both. For classifiers with a vector of logits (or a softmax that can be looked through). The
    attack that belongs to it is `attacks.TRADES`.

    Args:
        beta: weight of the divergence, at least 0.

    Raises:
        ValueError: if `beta` is negative.

    Source: Zhang et al., ICML 2019, equation 5, with the weight of the authors' scripts.
    """

    def __init__(self, beta: float = 6.0):
        if beta < 0:
            raise ValueError(f"`beta` must be at least 0. Received {beta!r}.")
        self.beta = beta

    def __call__(
        self,
        predict: Callable[[Any], Any],
        loss: Callable[[Any, Any], tf.Tensor],
        x: Any,
        x_adversarial: Any,
        y: Any,
    ) -> ObjectiveResult:
        clean = predict(x)
        clean_loss = loss(y, clean)
        adversarial = predict(x_adversarial)
        logits = [tf.cast(logits_of(outputs), tf.float32) for outputs in (clean, adversarial)]
        moved = tf.reduce_mean(kl_divergence(*logits))
        return ObjectiveResult(clean_loss + self.beta * moved, clean, adversarial)


def get_objective(identifier: Any, **arguments: Any) -> Objective:
    """Returns an objective.

    Args:
        identifier: an `Objective`; `"adversarial"` (the paper's), `"half"` (half clean, half
            adversarial) or `"trades"`; a serialised objective.
        **arguments: arguments of an objective given by name.

    Returns:
        An `Objective`.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an object that is none of these, or for unknown arguments.
    """
    return get_configured(Objective, identifier, arguments)
