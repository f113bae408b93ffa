# SPDX-License-Identifier: Apache-2.0
"""Signs of robustness that is not there: attacks too weak, aimed the wrong way, or out of scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import PGD, Attack
from tfmot_atmc.attacks.outputs import cross_entropy, logits_function
from tfmot_atmc.attacks.values import out_of_scale
from tfmot_atmc.evaluation.data import rows_of
from tfmot_atmc.evaluation.model_checks import (
    BEFORE,
    NotRun,
    coarse_outputs,
    other_than_source,
)
from tfmot_atmc.evaluation.report import NOT_RUN, PASSED, ClassResult, wilson_interval
from tfmot_atmc.evaluation.sample import Sample

__all__ = [
    "above_chance",
    "beyond_gradients",
    "black_box_stronger",
    "epsilon_out_of_scale",
    "given_up",
    "lowers_the_loss",
    "one_answer",
    "queries_too_few",
    "run_checks",
    "said",
    "steps_too_few",
    "unbounded",
]

# What a black-box attack may find that attacks with gradients did not, as a share of all examples:
# the most seen of honest networks (a twentieth) is no sign that gradients mislead.
_BLACK_BOX = 0.05
# A class is given up when its clean accuracy is surely below this share of that of all examples, or
# when none of so many of its examples is right, however bad the others are.
_GIVEN_UP = 1 / 3
_NONE_OF = 10
# Attacks that are run as a check look at so many examples.
_EXAMPLES = 32
# More queries find more everywhere; more than this share of all examples contradicts a figure.
_CLEARLY = 0.05
# Of many classes only the first are named.
_LISTED = 10
# Inputs that fill less than this share of the bounds were scaled otherwise than the bounds.
_FILLED = 0.05


def said(check: Callable[..., str | None], *arguments: Any) -> str:
    """Returns what a check says: that it passed, why it did not run, or what is wrong."""
    try:
        return check(*arguments) or PASSED
    except NotRun as reason:
        return f"{NOT_RUN}{reason}"


def run_checks(sample: Sample, attacks: dict[str, Attack]) -> dict[str, str]:
    """Returns what each check of the model and of the attacks says.

    `"passed"`, `"not run: "` and the reason, or what is wrong.

    Args:
        sample: a few examples.
        attacks: the attacks of the evaluation, by name.
    """
    before = dict(BEFORE)
    if sample.goal.kind != "classes":
        del before["outputs are logits"]
    found = {name: said(check, sample) for name, check in before.items()}
    found["epsilon fits the inputs"] = said(epsilon_out_of_scale, sample, attacks)
    if sample.rival is not None:
        found["source is the target's twin"] = said(other_than_source, sample)
    blind = [attack for attack in attacks.values() if not attack.needs_gradients]
    if len(blind) == len(attacks):
        found["outputs are fine enough"] = said(coarse_outputs, sample, blind[0])
        found["attacks take enough queries"] = said(queries_too_few, sample, attacks)
    white = {name: attack for name, attack in attacks.items() if attack.needs_gradients}
    if sample.source is None or not white:
        return found
    own = {name: attack for name, attack in white.items() if attack.loss is not None}
    if own and sample.goal.kind == "classes":
        found["attacks raise the loss"] = said(lowers_the_loss, sample, own)
    found["unbounded attacks succeed"] = said(unbounded, sample, next(iter(white.values())))
    longest: dict[type, tuple[str, Attack]] = {}
    for name, attack in white.items():
        kept = longest.get(_family(attack))
        if attack.converges and (kept is None or _steps(attack) > _steps(kept[1])):
            longest[_family(attack)] = name, attack
    if longest:
        found["attacks take enough steps"] = _all(
            [said(steps_too_few, sample, name, attack) for name, attack in longest.values()]
        )
    return found


def _all(verdicts: list[str]) -> str:
    """Returns one verdict of several: what is wrong, or why one did not run, or that all passed."""
    wrong = [text for text in verdicts if text != PASSED and not text.startswith(NOT_RUN)]
    missing = [text for text in verdicts if text.startswith(NOT_RUN)]
    return " ".join(wrong) or next(iter(missing), PASSED)


def epsilon_out_of_scale(sample: Sample, attacks: dict[str, Attack]) -> str | None:
    """Flags an epsilon in other units than the inputs, and bounds in others.

    Args:
        sample: examples.
        attacks: the attacks by name.
    """
    leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(sample.x)]
    leaves = [leaf for leaf in leaves if tf.as_dtype(leaf.dtype).is_floating]
    least, greatest = (float(f([f(leaf) for leaf in leaves])) for f in (np.min, np.max))
    judged = False
    for name, attack in attacks.items():
        largest = float(np.max(attack.epsilon))
        if not np.isfinite(largest) or largest <= 0:
            continue
        judged = True
        low, high = (None if end is None else np.asarray(end) for end in attack.bounds)
        bounded = low is not None and high is not None
        reach = float(np.max(high - low)) if bounded else greatest - least  # type: ignore[operator]
        if reach <= 0:
            raise NotRun("all inputs are equal")
        if bounded and greatest - least < _FILLED * reach:
            return (
                f"The inputs span [{least:g}, {greatest:g}], a small part of the bounds of {name}, "
                f"{attack.get_config()['bounds']}: inputs and bounds seem to be in other units."
            )
        entries = sum(leaf[0].size for leaf in leaves)
        length = reach * (np.sqrt(entries) if attack.norm == "l2" else 1.0)
        remark = out_of_scale(attack.epsilon, length)
        if remark is not None:
            return f"{name}: {remark}"
    if not judged:
        raise NotRun("no attack has an epsilon above 0")
    return None


def lowers_the_loss(sample: Sample, attacks: dict[str, Attack]) -> str | None:
    """Flags an attack whose own loss leads to the right answer, such as one of the wrong sign.

    Args:
        sample: examples.
        attacks: attacks with a loss of their own, by name.
    """
    before = _clean_loss(sample)
    for name, attack in attacks.items():
        right, losses = _under(sample, attack)
        if attack.epsilon.any() and right.all() and float(losses.mean()) < before:
            return (
                f"{name} lowers the cross-entropy, from {before:.3g} to {losses.mean():.3g} on "
                f"{len(losses)} examples, and breaks none: its loss has the wrong sign. An attack "
                "raises the `loss` that it is given."
            )
    return None


def _family(attack: Attack) -> type:
    """Returns the class of which the attack's is a variant: PGD for BIM, APGD for APGDT."""
    lineage = type(attack).__mro__
    return lineage[lineage.index(Attack) - 1]


def _steps(attack: Attack) -> int:
    return int(getattr(attack, "steps", 0))


def unbounded(sample: Sample, attack: Attack) -> str | None:
    """Flags a model that stays right under perturbations of any size within the bounds."""
    low, high = attack.bounds
    if sample.goal.kind == "values":
        raise NotRun("there are no right answers")
    if low is None or high is None:
        raise NotRun("the attack has no bounds")
    reach = float(np.max(high - low))
    strong = PGD(epsilon=reach, steps=20, step_size=reach / 8, bounds=attack.bounds, unroll=False)
    right = _under(sample, sample.goal.aimed(strong))[0]
    accuracy = float(right.mean())
    chance = 1.0 / sample.logits.shape[1] if sample.logits is not None else 0.5
    if accuracy <= chance + 0.1:
        return None
    return (
        f"{accuracy:.0%} of {len(right)} examples stay right under PGD with epsilon "
        f"{reach:g}, which allows any image: gradients do not lead the attack. Run an attack "
        "without gradients, such as Square or AutoAttack."
    )


def steps_too_few(sample: Sample, name: str, attack: Attack) -> str | None:
    """Flags an attack that breaks more, or whose loss still rises, when it takes twice the steps.

    The loss is the cross-entropy on what neither run breaks: some attacks end where they succeed.
    """
    runs = [attack.lengthened(times) for times in (1, 2)]
    if not attack.epsilon.any() or None in runs:
        raise NotRun(f"{name} takes no steps that could be doubled")
    (right, loss), (still, higher) = (_under(sample, run) for run in runs if run is not None)
    both, once, twice = right & still, float(right.mean()), float(still.mean())
    before, after = (float(values[both].mean()) if both.any() else 0.0 for values in (loss, higher))
    few = 1.5 / len(right)
    if sample.goal.kind == "values":
        return _still_rising(name, len(right), before, after)
    if not once or (after <= 1.1 * before + 0.05 and once - twice <= few):
        return None  # nothing is left to break, or more steps do not break more
    return (
        f"{name} has not converged: with twice the steps the accuracy goes from {once:.0%} to "
        f"{twice:.0%} on {len(right)} examples, and the loss of those that stay right from "
        f"{before:.3g} to {after:.3g}. Give it more steps."
    )


def _still_rising(name: str, count: int, before: float, after: float) -> str | None:
    if not after > before + 0.1 * abs(before):
        return None
    return (
        f"{name} has not converged: with twice the steps the mean loss of {count} examples goes "
        f"from {before:.3g} to {after:.3g}. Give it more steps."
    )


def queries_too_few(sample: Sample, attacks: dict[str, Attack]) -> str | None:
    """Flags a search by outputs alone that breaks clearly more by another one, twice as long.

    Args:
        sample: examples; attacked are some of those that withstood all attacks.
        attacks: the attacks by name, none of which goes by gradients.
    """
    counted = {name: attack for name, attack in attacks.items() if "queries" in attack.get_config()}
    if not counted:
        raise NotRun("no attack counts queries")
    name, attack = max(counted.items(), key=lambda entry: entry[1].get_config()["queries"])
    rows = np.flatnonzero(sample.left)[:_EXAMPLES]
    if not rows.size or not attack.epsilon.any():
        return None
    config = attack.get_config()
    changed = {"queries": 2 * config["queries"], "seed": config["seed"] + 1}
    x, y = sample.rows(rows)
    found = attack.from_config(config | changed)(sample.victim.black_box, x, y)
    broken = sample.victim.predict(tf.nest.map_structure(np.asarray, found)).argmax(axis=1) != y
    share = float(broken.mean() * sample.left.mean())
    if broken.sum() < 2 or share <= _CLEARLY:
        return None
    return (
        f"{name} has not converged: twice its {config['queries']} queries break {broken.sum()} of "
        f"{rows.size} examples that it left, so {share:.0%} of all. Give it more queries (its "
        "authors take 5,000 and more), or attack by gradients as well."
    )


def beyond_gradients(
    broken: dict[str, np.ndarray], attacks: dict[str, Attack], drop_broken: bool
) -> dict[str, np.ndarray]:
    """Returns what each attack without gradients broke and no attack with gradients did.

    Args:
        broken: which examples of a batch each attack broke, bool `[batch]`, by its name, in order.
        attacks: the attacks by name.
        drop_broken: broken examples are withheld from later attacks, so that only the attacks
            before one can be compared with it.
    """
    found: dict[str, np.ndarray] = {}
    for position, (name, attack) in enumerate(attacks.items()):
        rivals = list(attacks.items())[: position if drop_broken else None]
        white = [broken[rival] for rival, other in rivals if other.needs_gradients]
        if not attack.needs_gradients and white:
            found[name] = broken[name] & ~np.any(white, axis=0)
    return found


def black_box_stronger(beyond: dict[str, int], n: int, source: str | None = None) -> str | None:
    """Flags attacks without gradients that broke what attacks with gradients did not.

    Args:
        beyond: number of such examples by the attack's name.
        n: number of all examples.
        source: name of the model on which the attacks with gradients were made; None if that is
            the target itself.
    """
    for name, count in beyond.items():
        if count <= max(_BLACK_BOX * n, 1):
            continue
        broke = f"{name}, which sees outputs only, broke {count} examples that the attacks "
        if source is None:
            return (
                f"{broke}with gradients did not: gradients mislead, so figures of those attacks "
                "alone are overstated."
            )
        return (
            f"{broke}transferred from {source} did not: the two differ there, or its gradients "
            "mislead. Figures of the transferred attacks alone are overstated."
        )
    return None


def given_up(name: str, classes: dict[int, ClassResult]) -> str | None:
    """Flags classes that the target hardly ever answers, behind an average that hides it.

    Adversarial training of a small network finds that it pays to give up some classes. A class is
    also given up when none of ten or more of its examples is right: against a bad average, the
    class that is always answered would make all others look fair.

    Args:
        name: name of the target.
        classes: the results of every class.
    """
    n = sum(found.n for found in classes.values())
    enough = _GIVEN_UP * sum(found.clean for found in classes.values()) / max(n, 1)
    listed = [
        f"{label} ({found.clean / found.n:.1%} of {found.n})"
        for label, found in classes.items()
        if wilson_interval(found.clean, found.n)[1] < enough
        or (found.n >= _NONE_OF and not found.clean)
    ]
    if not listed:
        return None
    return (
        f"{name} has given up {len(listed)} of {len(classes)} classes on clean inputs: "
        f"{', '.join(listed[:_LISTED])}{', ...' if len(listed) > _LISTED else ''}."
    )


def one_answer(name: str, classes: dict[int, ClassResult]) -> str | None:
    """Flags a target that answers one class to all examples.

    Args:
        name: name of the target.
        classes: the results of every class.
    """
    right = [label for label, found in classes.items() if found.clean]
    if len(classes) < 2 or len(right) != 1 or classes[right[0]].clean < classes[right[0]].n:
        return None
    n = sum(found.n for found in classes.values())
    return f"{name} answers class {right[0]} to all of {n} examples: its answer is constant."


def above_chance(name: str, clean: int, n: int, classes: int) -> str | None:
    """Flags a target that is right less often than by guessing.

    Args:
        name: name of the target.
        clean: examples that it gets right as given.
        n: all examples.
        classes: number of classes.
    """
    if wilson_interval(clean, n)[1] >= 1 / classes:
        return None
    return (
        f"{name} is right on {clean / n:.1%} of the clean examples, less than by guessing one of "
        f"{classes} classes: the labels seem to be numbered otherwise than the outputs, such as "
        "shifted by one."
    )


def _right_rows(sample: Sample) -> np.ndarray:
    rows = np.flatnonzero(sample.right)[:_EXAMPLES]
    if not rows.size:
        raise NotRun(f"none of {len(sample.y)} examples is right as given")
    return rows


def _clean_loss(sample: Sample) -> float:
    rows = _right_rows(sample)
    x, y = tf.nest.map_structure(tf.convert_to_tensor, sample.rows(rows))
    model: Any = sample.source
    return float(tf.reduce_mean(cross_entropy(y, logits_function(model)(x))))


def _under(sample: Sample, attack: Attack) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the source stays right on its right examples, attacked, and their losses."""
    rows = _right_rows(sample)
    x, y = rows_of(sample.x, rows), sample.y[rows]
    model: Any = sample.source
    adversarial = attack(model, x, y)
    logits = logits_function(model)(adversarial)
    if sample.goal.kind != "classes":
        found = sample.goal.of_source(logits, y)
        return found.right, np.asarray(found.loss)
    loss = cross_entropy(tf.convert_to_tensor(y), logits)
    return np.argmax(logits, axis=1) == y, np.asarray(loss)
