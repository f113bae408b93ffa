# SPDX-License-Identifier: Apache-2.0
"""Signs in a model that its robustness is not there: masked gradients, random or coarse outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import Attack, looks_like_probabilities
from tfmot_atmc.evaluation.data import rows_of
from tfmot_atmc.evaluation.sample import Sample
from tfmot_atmc.slimming.dead import constant_output

__all__ = [
    "BEFORE",
    "NotRun",
    "coarse_outputs",
    "dead_pixels",
    "depends_on_batch",
    "gradients_not_finite",
    "other_than_source",
    "probabilities",
    "random_outputs",
    "same_outputs",
    "two_functions",
    "zero_gradients",
]

# Above this share of examples without any gradient, gradient attacks are half blind.
_ZERO_GRADIENTS = 0.01
# Above this share of entries without a gradient, signed steps leave most of the input alone. Honest
# networks of ReLUs were seen with half of them, with max-pooling with three quarters.
_DEAD_PIXELS = 0.8
# Two passes over the same input may differ by rounding.
_SAME_OUTPUT = 1e-4
# Passes over all examples, and over a few: some models are random in one call of many.
_PASSES, _SHORT_PASSES, _FEW = 5, 40, 4
# What other examples of the batch, or another way to call, may change, as a share of the range.
_SAME_FUNCTION = 0.01
# Below this share of distinct margins, small steps are not seen.
_DISTINCT = 0.5
# Root mean square difference of a file and its source, as a share of the source's outputs. Networks
# of one chain of trainings were seen to differ by a quarter, files from their own model by nothing.
_TWIN = 0.2


class NotRun(Exception):
    """A check could not look; the message says why."""


def probabilities(sample: Sample) -> str | None:
    """Flags outputs that are probabilities, whose gradients vanish where they saturate."""
    if sample.logits is None:
        raise NotRun("no gradients were taken")
    if not looks_like_probabilities(sample.logits):
        return None
    return (
        f"{sample.source_name} returns probabilities and its logits were not found: gradients "
        "through a saturated softmax vanish, so robustness is overstated."
    )


def zero_gradients(sample: Sample) -> str | None:
    """Flags examples whose input gradient is exactly zero."""
    zero = float(np.mean((_gradients(sample) == 0).all(axis=1)))
    if zero <= _ZERO_GRADIENTS:
        return None
    return (
        f"The input gradient is exactly zero for {zero:.1%} of {len(sample.y)} examples: gradients "
        "are masked or the logits are saturated, so robustness is overstated."
    )


def dead_pixels(sample: Sample) -> str | None:
    """Flags gradients that are exactly zero in most entries of the inputs that have any."""
    dead = _gradients(sample) == 0
    alive = ~dead.all(axis=1)
    if not alive.any():
        raise NotRun("no example has a gradient")
    share = float(dead[alive].mean())
    if share <= _DEAD_PIXELS:
        return None
    return (
        f"{share:.0%} of the entries of the input gradient are exactly zero, so steps by its sign "
        "move the few others only. That is common behind ReLUs that are off, as of very sparse "
        "networks, and behind max-pooling. Give attacks a `backward_slope`, and report AutoAttack, "
        "or Square beside the attack."
    )


def gradients_not_finite(sample: Sample) -> str | None:
    """Flags input gradients with NaN or infinity; attacks go on without such entries."""
    odd = float(np.mean(~np.isfinite(_gradients(sample)).all(axis=1)))
    if not odd:
        return None
    return (
        f"The input gradient is NaN or infinite for {odd:.1%} of {len(sample.y)} examples, which "
        "attacks by gradients go around. Look for a logarithm, root or division at zero, or logits "
        "too large for their dtype."
    )


def random_outputs(sample: Sample) -> str | None:
    """Flags a target that answers the same input differently, be it in one call of many."""
    change = 0.0
    for rows, passes in ((slice(None), _PASSES), (slice(_FEW), _SHORT_PASSES)):
        part = rows_of(sample.x, rows)
        first = sample.victim.predict(part)
        for _ in range(passes - 1):
            apart = np.abs(sample.victim.predict(part) - first)
            change = max(change, float(np.nanmax(apart)) if not np.isnan(apart).all() else 0.0)
    if change <= _SAME_OUTPUT:
        return None
    return (
        f"{sample.victim.name} is random: passes over the same inputs differ by {change:.2g}. "
        "Attack the average: AutoAttack(version='rand'), or APGD with `eot`."
    )


def depends_on_batch(sample: Sample) -> str | None:
    """Flags a target that answers an example differently in other company."""
    if len(sample.y) < 2:
        raise NotRun("there is one example only")
    if random_outputs(sample) is not None:
        raise NotRun("the outputs are random")
    together = sample.victim.predict(sample.x)[:_FEW]
    count = len(together)
    alone = [sample.victim.predict(rows_of(sample.x, slice(i, i + 1))) for i in range(count)]
    change, size = _apart(np.concatenate(alone), together)
    if change <= _SAME_FUNCTION * size + _SAME_OUTPUT:
        return None
    return (
        f"The answers of {sample.victim.name} depend on the other examples of the batch (by up to "
        f"{change:.2g}), such as by batch statistics at test time: every batch size gives another "
        "figure. Call it in inference mode."
    )


def two_functions(sample: Sample) -> str | None:
    """Flags a Keras model that answers differently where `training` is left out."""
    model: Any = sample.victim.keras_model
    if model is None:
        raise NotRun("the target is no Keras model")
    few = tf.nest.map_structure(tf.convert_to_tensor, rows_of(sample.x, slice(_FEW)))
    plain, inference = (_row(model(few, **how)) for how in ({}, {"training": False}))
    change, size = _apart(plain, inference)
    if change <= _SAME_FUNCTION * size + _SAME_OUTPUT:
        return None
    return (
        f"{sample.victim.name} called as model(x) differs from model(x, training=False) by up to "
        f"{change:.2g}: a layer within was called with training=True. Evaluated is the second, as "
        "in `predict`; what is deployed may be the first."
    )


def same_outputs(sample: Sample) -> str | None:
    """Flags a target that answers the same to every input."""
    inputs = [np.asarray(leaf) for leaf in tf.nest.flatten(sample.x)]
    if constant_output(inputs):
        raise NotRun("all inputs are equal")
    if not constant_output([sample.victim.predict(sample.x)]):
        return None
    return (
        f"{sample.victim.name} returns the same for each of {len(sample.y)} different inputs: its "
        "output is constant, and no attack can change it. Train again, with a higher `ratio` or "
        "budgets of layers."
    )


BEFORE: dict[str, Callable[[Sample], str | None]] = {
    "outputs depend on the input": same_outputs,
    "outputs are logits": probabilities,
    "gradients are not zero": zero_gradients,
    "gradients reach the inputs": dead_pixels,
    "gradients are finite": gradients_not_finite,
    "outputs are deterministic": random_outputs,
    "each example is answered alone": depends_on_batch,
    "inference is one function": two_functions,
}
"""Checks of a model by name; each returns None or what is wrong, or raises `NotRun`."""


def coarse_outputs(sample: Sample, attack: Attack) -> str | None:
    """Flags outputs of few distinct values, on which a search by outputs sees no progress.

    Args:
        sample: examples.
        attack: the attack that sees outputs only, for its epsilon and bounds.
    """
    if len(sample.y) < 8:
        raise NotRun("there are too few examples")
    random = np.random.default_rng(0)
    low, high = attack.bounds
    least, greatest = (-np.inf if low is None else low), (np.inf if high is None else high)

    def moved(leaf: np.ndarray) -> np.ndarray:
        if not tf.as_dtype(leaf.dtype).is_floating:
            return leaf
        step = attack.epsilon / 4 * random.choice([-1.0, 1.0], leaf.shape)
        return np.clip(leaf + step, least, greatest).astype(leaf.dtype)

    nearby = tf.nest.map_structure(moved, sample.x)
    outputs = np.concatenate([sample.victim.predict(part) for part in (sample.x, nearby)])
    y = np.concatenate([sample.y, sample.y])
    own = np.take_along_axis(outputs, y[:, None], axis=1)[:, 0]
    others = np.where(np.arange(outputs.shape[1]) == y[:, None], -np.inf, outputs)
    margins = own - others.max(axis=1)
    flat = [np.asarray(leaf).reshape(len(sample.y), -1) for leaf in tf.nest.flatten(sample.x)]
    inputs = 2 * len(np.unique(np.concatenate(flat, axis=1), axis=0))
    share = len(np.unique(margins)) / inputs
    if share >= _DISTINCT:
        return None
    return (
        f"The outputs of {sample.victim.name} are coarse: {len(np.unique(margins))} different "
        f"margins for {inputs} inputs. An attack that sees outputs only cannot tell a small step "
        "ahead from none, so its figure is overstated. Pass `source=` the Keras model and attack "
        "by gradients as well, such as by 'autoattack'."
    )


def other_than_source(sample: Sample) -> str | None:
    """Flags a source that computes something else than the target."""
    if sample.rival is None:
        raise NotRun("the target is its own source")
    order = np.random.default_rng(0).permutation(len(sample.y))

    def mixed(leaf: np.ndarray) -> np.ndarray:
        if not tf.as_dtype(leaf.dtype).is_floating:
            return leaf
        return ((leaf + leaf[order]) / 2).astype(leaf.dtype)

    # Between examples, where networks that were taught the same still differ.
    parts = (sample.x, tf.nest.map_structure(mixed, sample.x))
    if sample.goal.kind != "classes":
        return _other_values(sample, parts)
    mine = np.concatenate([sample.victim.predict(part) for part in parts])
    theirs = np.concatenate([sample.rival.predict(part) for part in parts])
    if mine.shape != theirs.shape:
        return f"{sample.victim.name} and {sample.rival.name} have outputs of other shapes."
    same = float(np.mean(mine.argmax(axis=1) == theirs.argmax(axis=1)))
    if looks_like_probabilities(mine) != looks_like_probabilities(theirs):
        mine, theirs = (
            outputs if looks_like_probabilities(outputs) else tf.nn.softmax(outputs).numpy()
            for outputs in (mine, theirs)
        )
    mine, theirs = (z - z.mean(axis=1, keepdims=True) for z in (mine, theirs))
    apart = float(np.sqrt(np.nanmean((mine - theirs) ** 2) / max(np.nanmean(theirs**2), 1e-30)))
    if apart <= _TWIN:
        return None
    return (
        f"{sample.victim.name} is not what {sample.rival.name} computes: their outputs differ by "
        f"{apart:.0%}, their answers agree for {same:.0%}. Examples that are made on another model "
        "transfer badly, so robustness is overstated. Pass `source=` the model that the file was "
        "made from."
    )


def _other_values(sample: Sample, parts: tuple[Any, ...]) -> str | None:
    rival: Any = sample.rival
    tensors = [tf.nest.map_structure(tf.convert_to_tensor, part) for part in parts]
    mine = np.concatenate([_row(sample.victim.outputs(part)) for part in tensors])
    theirs = np.concatenate([_row(rival.outputs(part)) for part in tensors])
    if mine.shape != theirs.shape:
        return f"{sample.victim.name} and {rival.name} have outputs of other shapes."
    apart = float(np.sqrt(np.nanmean((mine - theirs) ** 2) / max(np.nanvar(theirs), 1e-30)))
    if apart <= _TWIN:
        return None
    return (
        f"{sample.victim.name} is not what {rival.name} computes: their outputs differ by "
        f"{apart:.0%} of their spread. Examples that are made on another model transfer badly, so "
        "robustness is overstated. Pass `source=` the model that the file was made from."
    )


def _row(outputs: Any) -> np.ndarray:
    """Returns all outputs of an example in one row."""
    flat = [np.asarray(leaf) for leaf in tf.nest.flatten(outputs)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in flat], axis=1)


def _gradients(sample: Sample) -> np.ndarray:
    if sample.gradients is None:
        raise NotRun("no gradients were taken")
    return sample.gradients


def _apart(some: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Returns the largest difference, and the range of the values."""
    some, others = some.astype(np.float64), others.astype(np.float64)
    both = np.isfinite(some) & np.isfinite(others)
    if not both.any():
        return 0.0, 0.0
    return float(np.abs(some - others)[both].max()), float(np.ptp(others[both]))
