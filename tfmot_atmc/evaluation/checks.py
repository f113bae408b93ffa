# SPDX-License-Identifier: Apache-2.0
"""Signs of robustness that is not there: masked gradients, random outputs, attacks too weak."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import PGD, Attack, Problem, looks_like_probabilities
from tfmot_atmc.attacks.outputs import cross_entropy, logits_function
from tfmot_atmc.evaluation.report import ClassResult, wilson_interval
from tfmot_atmc.evaluation.targets import Target
from tfmot_atmc.slimming.dead import constant_output

__all__ = [
    "BEFORE",
    "Sample",
    "beyond_gradients",
    "black_box_stronger",
    "given_up",
    "one_answer",
    "probabilities",
    "random_outputs",
    "run_checks",
    "same_outputs",
    "steps_too_few",
    "take_sample",
    "unbounded",
    "zero_gradients",
]

# Above this share of examples without any gradient, gradient attacks are half blind.
_ZERO_GRADIENTS = 0.01
# What a black-box attack may find that attacks with gradients did not, as a share of all examples.
_BLACK_BOX = 0.002
# A class is given up when its clean accuracy is surely below this share of that of all examples, or
# when none of so many of its examples is right, however bad the others are.
_GIVEN_UP = 1 / 3
_NONE_OF = 10
# Two passes over the same input may differ by rounding.
_SAME_OUTPUT = 1e-4
_EXAMPLES = 32
# Of many classes only the first are named.
_LISTED = 10


class Sample(NamedTuple):
    """What the checks look at.

    Attributes:
        victim: The target.
        source: The model that gradients are taken of; None if there is none.
        source_name: Its name.
        x: Nest of a few clean inputs.
        y: Their class indices, `[batch]`.
        right: Which of them the target gets right, bool `[batch]`.
        logits: Outputs of the source, `[batch, classes]`; None without a source.
        gradients: Input gradients of its cross-entropy, `[batch, entries]`; None without a source.
    """

    victim: Target
    source: Callable[..., Any] | None
    source_name: str
    x: Any
    y: np.ndarray
    right: np.ndarray
    logits: np.ndarray | None
    gradients: np.ndarray | None


def take_sample(victim: Target, source: Target, x: Any, y: np.ndarray, right: np.ndarray) -> Sample:
    """Returns the sample for the checks: the first examples of the first batch.

    Raises:
        ValueError: no gradient can be taken through the source.
    """
    few = tf.nest.map_structure(lambda leaf: leaf[:_EXAMPLES], x)
    logits = gradients = None
    if source.model is not None:
        logits, gradients = _look(source.model, source.name, few, y[:_EXAMPLES])
    few_right = right[:_EXAMPLES]
    return Sample(
        victim, source.model, source.name, few, y[:_EXAMPLES], few_right, logits, gradients
    )


def probabilities(sample: Sample) -> str | None:
    """Flags outputs that are probabilities, whose gradients vanish where they saturate."""
    if sample.logits is None or not looks_like_probabilities(sample.logits):
        return None
    return (
        f"{sample.source_name} returns probabilities and its logits were not found: gradients "
        "through a saturated softmax vanish, so robustness is overstated."
    )


def zero_gradients(sample: Sample) -> str | None:
    """Flags examples whose input gradient is exactly zero."""
    if sample.gradients is None:
        return None
    zero = float(np.mean((sample.gradients == 0).all(axis=1)))
    if zero <= _ZERO_GRADIENTS:
        return None
    return (
        f"The input gradient is exactly zero for {zero:.1%} of {len(sample.y)} examples: gradients "
        "are masked or the logits are saturated, so robustness is overstated."
    )


def random_outputs(sample: Sample) -> str | None:
    """Flags a target that answers the same input differently."""
    first, second = (sample.victim.predict(sample.x) for _ in range(2))
    change = float(np.nanmax(np.abs(first - second))) if first.size else 0.0
    if change <= _SAME_OUTPUT:
        return None
    return (
        f"{sample.victim.name} is random: two passes over the same inputs differ by {change:.2g}. "
        "Attack the average: AutoAttack(version='rand'), or APGD with `eot`."
    )


def same_outputs(sample: Sample) -> str | None:
    """Flags a target that answers the same to every input."""
    inputs = [np.asarray(leaf) for leaf in tf.nest.flatten(sample.x)]
    if constant_output(inputs) or not constant_output([sample.victim.predict(sample.x)]):
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
    "outputs are deterministic": random_outputs,
}
"""Checks of a model by name; each returns None or what is wrong. A new one is a new entry."""


def run_checks(sample: Sample, attacks: dict[str, Attack]) -> dict[str, str]:
    """Returns what each check of the model and of the attacks says: `"passed"` or what is wrong.

    Args:
        sample: A few examples.
        attacks: The attacks of the evaluation, by name.
    """
    found = {name: check(sample) or "passed" for name, check in BEFORE.items()}
    white = [(name, a) for name, a in attacks.items() if a.needs_gradients]
    if sample.source is None or not white:
        return found
    found["unbounded attacks succeed"] = unbounded(sample, white[0][1]) or "passed"
    longest: dict[type, tuple[str, Attack]] = {}
    for name, attack in white:
        kept = longest.get(_family(attack))
        if attack.converges and (kept is None or _steps(attack) > _steps(kept[1])):
            longest[_family(attack)] = name, attack
    if longest:
        said = [steps_too_few(sample, name, attack) for name, attack in longest.values()]
        found["attacks take enough steps"] = " ".join(filter(None, said)) or "passed"
    return found


def _family(attack: Attack) -> type:
    """Returns the class of which the attack's is a variant: PGD for BIM, APGD for APGDT."""
    lineage = type(attack).__mro__
    return lineage[lineage.index(Attack) - 1]


def _steps(attack: Attack) -> int:
    return int(getattr(attack, "steps", 0))


def unbounded(sample: Sample, attack: Attack) -> str | None:
    """Flags a model that stays right under perturbations of any size within the bounds."""
    low, high = attack.bounds
    if low is None or high is None or not sample.right.any():
        return None
    reach = float(np.max(high - low))
    strong = PGD(epsilon=reach, steps=20, step_size=reach / 8, bounds=attack.bounds, unroll=False)
    accuracy = float(_under(sample, strong)[0].mean())
    chance = 1.0 / sample.logits.shape[1] if sample.logits is not None else 0.5
    if accuracy <= chance + 0.1:
        return None
    return (
        f"{accuracy:.0%} of {int(sample.right.sum())} examples stay right under PGD with epsilon "
        f"{reach:g}, which allows any image: gradients do not lead the attack. Run an attack "
        "without gradients, such as Square or AutoAttack."
    )


def steps_too_few(sample: Sample, name: str, attack: Attack) -> str | None:
    """Flags an attack that breaks more, or whose loss still rises, when it takes twice the steps.

    The loss is the cross-entropy on what neither run breaks: some attacks end where they succeed.
    """
    runs = [attack.lengthened(times) for times in (1, 2)]
    if not sample.right.any() or not attack.epsilon.any() or None in runs:
        return None
    (right, loss), (still, higher) = (_under(sample, run) for run in runs if run is not None)
    both, once, twice = right & still, float(right.mean()), float(still.mean())
    before, after = (float(values[both].mean()) if both.any() else 0.0 for values in (loss, higher))
    few = 1.5 / len(right)
    if not once or (after <= 1.1 * before + 0.05 and once - twice <= few):
        return None  # nothing is left to break, or more steps do not break more
    return (
        f"{name} has not converged: with twice the steps the accuracy goes from {once:.0%} to "
        f"{twice:.0%} on {len(right)} examples, and the loss of those that stay right from "
        f"{before:.3g} to {after:.3g}. Give it more steps."
    )


def beyond_gradients(
    broken: dict[str, np.ndarray], attacks: dict[str, Attack], drop_broken: bool
) -> dict[str, np.ndarray]:
    """Returns what each attack without gradients broke and no attack with gradients did.

    Args:
        broken: Which examples of a batch each attack broke, bool `[batch]`, by its name, in order.
        attacks: The attacks by name.
        drop_broken: Broken examples are withheld from later attacks, so that only the attacks
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
        beyond: Number of such examples by the attack's name.
        n: Number of all examples.
        source: Name of the model on which the attacks with gradients were made; None if that is
            the target itself.
    """
    for name, count in beyond.items():
        if count <= _BLACK_BOX * n:
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
        name: Name of the target.
        classes: The results of every class.
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
        name: Name of the target.
        classes: The results of every class.
    """
    right = [label for label, found in classes.items() if found.clean]
    if len(classes) < 2 or len(right) != 1 or classes[right[0]].clean < classes[right[0]].n:
        return None
    n = sum(found.n for found in classes.values())
    return f"{name} answers class {right[0]} to all of {n} examples: its answer is constant."


def _under(sample: Sample, attack: Attack) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the source stays right on its right examples, attacked, and their losses."""
    rows = np.flatnonzero(sample.right)
    x = tf.nest.map_structure(lambda leaf: leaf[rows], sample.x)
    y = sample.y[rows]
    model: Any = sample.source
    adversarial = attack(model, x, y)
    logits = logits_function(model)(adversarial)
    loss = cross_entropy(tf.convert_to_tensor(y), logits)
    return np.argmax(logits, axis=1) == y, np.asarray(loss)


def _look(
    model: Callable[..., Any], name: str, x: Any, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns outputs and input gradients."""

    def probe(inputs: Any, labels: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        problem = Problem(
            logits_function(model),
            inputs,
            labels,
            epsilon=np.array(0.0),
            bounds=(None, None),
            loss=cross_entropy,
        )
        logits, _, gradients = problem.gradient(problem.x)
        return logits, gradients

    inputs = tf.nest.map_structure(tf.convert_to_tensor, x), tf.convert_to_tensor(y)
    try:
        function = tf.function(probe, autograph=False).get_concrete_function(*inputs)
        logits, gradients = function(*inputs)
    except Exception as error:
        raise ValueError(
            f"No input gradient could be taken through {name}: {error}\n"
            "Pass `source=` a differentiable model (a Keras model or a TensorFlow function "
            "returning logits) to make the adversarial examples on, or give attacks that need no "
            "gradients, such as Square."
        ) from error
    flat = [np.asarray(gradient).reshape(len(y), -1) for gradient in gradients]
    return np.asarray(logits), np.concatenate(flat, axis=1)
