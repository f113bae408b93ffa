# SPDX-License-Identifier: Apache-2.0
"""What stronger attacks leave of a sample: a bound for PGD, FGSM or Square alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import APGD, Attack, Square, fold_in
from tfmot_atmc.attacks.outputs import any_batch
from tfmot_atmc.evaluation.correctness import check_ball
from tfmot_atmc.evaluation.model_checks import NotRun
from tfmot_atmc.evaluation.report import NOT_RUN, PASSED
from tfmot_atmc.evaluation.sample import Sample, look

__all__ = ["second_opinion"]

_STEPS, _QUERIES = 40, 200
# A figure is contradicted by more than this share of the sample, and by two examples.
_CLEARLY = 0.05
# Of several labels so many are attacked one by one, the least sure first.
_LABELS = 5
# A loss under attack is contradicted by one that is larger by more than this share of it.
_MORE_LOSS = 0.1


def second_opinion(
    sample: Sample,
    model: Callable[..., Any] | None,
    attacks: dict[str, Attack],
    seed: int,
) -> tuple[str | None, dict[str, Any]]:
    """Attacks what the attacks of an evaluation have left, once more and otherwise.

    APGD on two losses with 40 steps each, then Square with 200 queries, each on what is left of
    the sample (128 examples at most): the cost of some 150 gradients for each of these.

    Args:
        sample: examples, with `left` saying which withstood the attacks.
        model: the model to take gradients of; None if there is none.
        attacks: the attacks of the evaluation, by name.
        seed: seed of the evaluation.

    Returns:
        What to say as a check, None where the attacks are of that kind already; and the figures.
    """
    if _as_strong(sample, attacks):
        return None, {}
    try:
        parts = _parts(_ball(attacks), sample, model)
    except NotRun as reason:
        return f"{NOT_RUN}{reason}", {}
    left, broken = np.flatnonzero(sample.left), 0
    worst = None if sample.worst is None else sample.worst.copy()
    for number, (name, attack) in enumerate(parts.items()):
        if not left.size:
            break
        x, y = sample.rows(left)
        target: Any = model if attack.needs_gradients else sample.victim.black_box
        aims = [y]
        if sample.goal.kind == "labels" and sample.logits is not None:
            aims = sample.goal.one_by_one(sample.logits[left], y, _LABELS)
        found = sample.goal.judged(sample.victim.name, sample.victim.predict(x), y)
        for turn, aim in enumerate(aims):
            start = fold_in(tf.constant([seed, -1], tf.int64), number + turn)
            adversarial = attack(target, x, aim, seed=start)
            adversarial = tf.nest.map_structure(np.asarray, adversarial)
            check_ball(name, attack, x, adversarial)
            outputs = sample.victim.predict(adversarial)
            again = sample.goal.judged(sample.victim.name, outputs, y)
            found = found.under(np.arange(len(left)), again)
        if worst is not None and found.loss is not None:
            worst[left] = np.maximum(worst[left], found.loss)
        broken += int((~found.right).sum())
        left = left[found.right]
    figures = _figures(sample, broken, list(parts))
    if sample.goal.kind == "values" and worst is not None and sample.worst is not None:
        figures |= {"reported_loss": float(sample.worst.mean()), "loss": float(worst.mean())}
        return _of_losses(figures), figures
    return _of_accuracies(sample, attacks, figures), figures


def _figures(sample: Sample, broken: int, attacks: list[str]) -> dict[str, Any]:
    n, attacked = len(sample.y), int(sample.left.sum())
    counts = {"n": n, "attacked": attacked, "broken": broken, "attacks": attacks}
    if sample.goal.kind == "values":
        return counts
    return {"reported": attacked / n, "accuracy": (attacked - broken) / n, **counts}


def _of_accuracies(sample: Sample, attacks: dict[str, Attack], found: dict[str, Any]) -> str:
    if found["broken"] <= _CLEARLY * found["n"] or found["broken"] < 2:
        return PASSED
    better = "attacks='autoattack'" if sample.goal.kind == "classes" else "APGD"
    return (
        f"Of {found['n']} of the examples {', '.join(attacks)} leave {found['reported']:.1%} "
        f"right, {' and '.join(found['attacks'])} only {found['accuracy']:.1%}: the robust "
        f"accuracy is overstated. Report {better}."
    )


def _of_losses(found: dict[str, Any]) -> str:
    before, after = found["reported_loss"], found["loss"]
    if not after > before + _MORE_LOSS * abs(before):
        return PASSED
    return (
        f"On {found['n']} examples {' and '.join(found['attacks'])} raises the mean loss to "
        f"{after:.3g}, the attacks only to {before:.3g}: the loss under attack is understated. "
        "Report APGD."
    )


def _as_strong(sample: Sample, attacks: dict[str, Attack]) -> bool:
    """Tells whether gradients on two losses and a search by outputs are among the attacks.

    Where there are no classes, there is one loss and no such search.
    """
    climbs = [attack for attack in attacks.values() if isinstance(attack, APGD)]
    if sample.goal.kind != "classes":
        return any(attack.steps >= _STEPS for attack in climbs)
    several = len({attack.objective for attack in climbs}) > 1
    return several and any(isinstance(attack, Square) for attack in attacks.values())


def _ball(attacks: dict[str, Attack]) -> Attack:
    """Returns the attack with the largest ball."""
    balls = [a for a in attacks.values() if a.epsilon.any() and np.isfinite(a.epsilon).all()]
    if not balls:
        raise NotRun("no attack has a ball of its own")
    return max(balls, key=lambda attack: float(np.max(attack.epsilon)))


def _parts(like: Attack, sample: Sample, model: Callable[..., Any] | None) -> dict[str, Attack]:
    config = like.get_config()
    common = {key: config[key] for key in ("epsilon", "norm", "bounds", "seed") if key in config}
    parts: dict[str, Attack] = {}
    if sample.goal.kind != "classes":
        apgd = APGD(steps=_STEPS, **common)
        return {"apgd": sample.goal.aimed(apgd)}
    if model is not None and _differentiable(sample, model):
        classes = sample.victim.predict(sample.x).shape[1]
        second = "dlr" if classes > 2 else "margin"
        for objective in ("ce", second):
            parts[f"apgd-{objective}"] = APGD(objective=objective, steps=_STEPS, **common)
    if _in_graph(sample):
        parts["square"] = Square(queries=_QUERIES, **common)
    if not parts:
        raise NotRun("the target gives no gradients and cannot be called in a graph")
    return parts


def _in_graph(sample: Sample) -> bool:
    """Tells whether the target can be called in a graph, as a search by outputs does."""
    signature = tf.nest.map_structure(lambda leaf: any_batch(tf.convert_to_tensor(leaf)), sample.x)
    try:
        tf.function(sample.victim.black_box, autograph=False).get_concrete_function(signature)
    except Exception:
        return False
    return True


def _differentiable(sample: Sample, model: Callable[..., Any]) -> bool:
    if sample.gradients is not None:
        return True
    x, y = sample.rows(np.arange(1))
    try:
        look(model, sample.victim.name, x, y)
    except ValueError:
        return False
    return True
