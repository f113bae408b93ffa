# SPDX-License-Identifier: Apache-2.0
"""Accuracy under attack, with the checks that keep the figure honest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc import attacks as attacks_lib
from tfmot_atmc.attacks import Attack, Problem, fold_in, looks_like_probabilities
from tfmot_atmc.attacks.outputs import cross_entropy, logits_function
from tfmot_atmc.evaluation.report import AttackResult, RobustnessReport, wilson_interval
from tfmot_atmc.evaluation.targets import Target, as_target

__all__ = ["evaluate_robustness"]

# Above this fraction of examples without any gradient, gradient attacks are half blind.
_ZERO_GRADIENTS = 0.01


def evaluate_robustness(
    target: Any,
    data: Any,
    *,
    attacks: Any = None,
    epsilon: Any = None,
    batch_size: int = 250,
    source: Any = None,
    max_examples: int | None = None,
    drop_broken: bool = True,
    seed: int = 0,
    verbose: int = 1,
) -> RobustnessReport:
    """Measures the accuracy of a classifier on clean data and under attacks.

    An example is robust when right on the clean input and under every attack. The result is an
    upper bound of the true robustness: a stronger attack may find more.

    Args:
        target: Keras model, callable from a batch to logits, or path of a .tflite file.
        data: Pair `(x, y)` of arrays (`x` may be a nest), or a batched `tf.data.Dataset` of such
            pairs. Labels are class indices or one-hot.
        attacks: `Attack`, name, list of these, or dict from a name of your choice to one. None is
            a 16-step `PGD`. Earlier ones should be cheaper.
        epsilon: Radius in input units for the default attack and for those given by name.
        batch_size: Examples attacked at once; a dataset keeps its own batches.
        source: Model that stands in for a target without gradients: examples are made on it and
            transferred, a weaker attack, and the result says so.
        max_examples: Use only the first ones.
        drop_broken: Give an attack only what is still right, so that the accuracy after it is
            after all so far. False gives each all that is right when clean.
        seed: Seed of all attacks, together with each one's own and the batch's number.
        verbose: 0 for silence, 1 for a progress bar.

    Returns:
        `RobustnessReport`; `print` shows a table, `save` writes JSON.

    Raises:
        ValueError: no data, bad labels, inputs outside an attack's bounds, neither `attacks` nor
            `epsilon`, or a target without gradients and no `source`.
        RuntimeError: an attack left its ball or bounds.

    Example:
    >>> model = lambda x: tf.stack([x[:, 0], 1.0 - x[:, 0]], axis=-1)
    >>> x = np.array([[0.9], [0.55], [0.1], [0.2]], "float32")
    >>> report = evaluate_robustness(model, (x, [0, 0, 1, 0]), epsilon=0.1, verbose=0)
    >>> report.clean_accuracy, report.robust_accuracy
    (0.75, 0.5)
    """
    named = _named_attacks(attacks, epsilon)
    victim = as_target(target)
    origin = victim if source is None else as_target(source)
    if origin.model is None:
        raise ValueError(
            f"{origin.name} gives no gradients. Pass `source=` the Keras model it was made from: "
            "adversarial examples are then made on that and transferred."
        )
    run = _Evaluation(victim, origin.model, origin.name, named, drop_broken, seed)
    with _progress(verbose, data, batch_size, max_examples) as advance:
        for x, y in _batches(data, batch_size, max_examples):
            run.add(x, y)
            advance(len(y))
    return run.report(batch_size, None if source is None else origin.name)


class _Evaluation:
    """Runs batch after batch and keeps the counts."""

    def __init__(
        self,
        victim: Target,
        source: Callable[..., Any],
        source_name: str,
        attacks: dict[str, Attack],
        drop_broken: bool,
        seed: int,
    ) -> None:
        self._victim, self._attacks = victim, attacks
        self._source, self._source_name = source, source_name
        self._drop_broken, self._seed = drop_broken, seed
        self._batches = self._n = self._clean = self._robust = 0
        self._attacked = dict.fromkeys(attacks, 0)
        self._broken = dict.fromkeys(attacks, 0)
        self._classes: set[int] = set()
        self._warnings: list[str] = []

    def add(self, x: Any, y: np.ndarray) -> None:
        for attack in self._attacks.values():
            attack.check_inputs(x)
        clean = self._correct(x, y)
        if not self._batches:
            self._probe(x, y)
        robust = clean.copy()
        for position, (name, attack) in enumerate(self._attacks.items()):
            rows = np.flatnonzero(robust if self._drop_broken else clean)
            if not rows.size:
                continue
            part = tf.nest.map_structure(lambda leaf, rows=rows: leaf[rows], x)
            start = tf.constant([self._seed, attack.seed], tf.int64)
            adversarial = attack(
                self._source,
                part,
                y[rows],
                seed=fold_in(fold_in(start, position), self._batches),
            )
            adversarial = tf.nest.map_structure(np.asarray, adversarial)
            _check_ball(name, attack, part, adversarial)
            still_right = self._correct(adversarial, y[rows])
            robust[rows[~still_right]] = False
            self._attacked[name] += rows.size
            self._broken[name] += int((~still_right).sum())
        self._batches += 1
        self._n += len(y)
        self._clean += int(clean.sum())
        self._robust += int(robust.sum())
        self._classes.update(np.unique(y).tolist())

    def report(self, batch_size: int, source: str | None) -> RobustnessReport:
        if not self._n:
            raise ValueError("There is no data to evaluate on: received no examples.")
        if len(self._classes) == 1:
            self._warnings.append(
                f"All labels are {self._classes.pop()}: a constant answer would look robust."
            )
        results, left = [], self._clean
        for name, attack in self._attacks.items():
            right = (left if self._drop_broken else self._clean) - self._broken[name]
            left = right
            results.append(
                AttackResult(
                    name=f"{name} (transfer from {source})" if source else name,
                    accuracy=right / self._n,
                    interval=wilson_interval(right, self._n),
                    attacked=self._attacked[name],
                    broken=self._broken[name],
                    attack={"class_name": type(attack).__name__, "config": attack.get_config()},
                )
            )
        return RobustnessReport(
            target=self._victim.name,
            source=source,
            n=self._n,
            clean_accuracy=self._clean / self._n,
            clean_interval=wilson_interval(self._clean, self._n),
            robust_accuracy=self._robust / self._n,
            robust_interval=wilson_interval(self._robust, self._n),
            attacks=results,
            drop_broken=self._drop_broken,
            seed=self._seed,
            batch_size=batch_size,
            warnings=self._warnings,
        )

    def _correct(self, x: Any, y: np.ndarray) -> np.ndarray:
        """Returns which examples the target gets right; a NaN anywhere in a row is wrong."""
        outputs = self._victim.predict(x)
        if outputs.ndim != 2 or len(outputs) != len(y) or outputs.shape[1] < 2:
            raise ValueError(
                f"{self._victim.name} must return [batch, classes] with at least two classes. "
                f"Received shape {outputs.shape} for a batch of {len(y)}."
            )
        if y.min() < 0 or y.max() >= outputs.shape[1]:
            raise ValueError(
                f"Labels must be in [0, {outputs.shape[1]}). Received {y.min()} to {y.max()}."
            )
        return np.isfinite(outputs).all(axis=-1) & (outputs.argmax(axis=-1) == y)

    def _probe(self, x: Any, y: np.ndarray) -> None:
        """Looks for signs that gradients mislead on the first batch."""
        model = self._source

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
                f"No input gradient could be taken through {self._source_name}: {error}\n"
                "Pass `source=` a differentiable model (a Keras model or a TensorFlow function "
                "returning logits) to make the adversarial examples on."
            ) from error
        if looks_like_probabilities(logits):
            self._warnings.append(
                f"{self._source_name} returns probabilities and its logits were not found: "
                "gradients through a saturated softmax vanish, so robustness is overstated."
            )
        flat = [np.asarray(gradient).reshape(len(y), -1) for gradient in gradients]
        zero = float(np.mean(np.all(np.concatenate(flat, axis=1) == 0, axis=1)))
        if zero > _ZERO_GRADIENTS:
            self._warnings.append(
                f"The input gradient is exactly zero for {zero:.1%} of the first batch: gradients "
                "are masked or the logits are saturated, so robustness is overstated."
            )


def _named_attacks(attacks: Any, epsilon: Any) -> dict[str, Attack]:
    """Returns attacks under unique names, in order."""
    if attacks is None:
        if epsilon is None:
            raise ValueError("Pass `attacks=` or, for the default attack, `epsilon=`.")
        attacks = attacks_lib.PGD(epsilon=epsilon, steps=16)
    if isinstance(attacks, Mapping) and "class_name" not in attacks:
        return {str(name): _attack(entry, epsilon) for name, entry in attacks.items()}
    entries = attacks if isinstance(attacks, (list, tuple)) else [attacks]
    named: dict[str, Attack] = {}
    for entry in entries:
        attack = _attack(entry, epsilon)
        steps = getattr(attack, "steps", None)
        base = type(attack).__name__ + (f"-{steps}" if steps else "")
        name, count = base, 1
        while name in named:
            count += 1
            name = f"{base} #{count}"
        named[name] = attack
    if not named:
        raise ValueError("`attacks` is empty. Pass at least one attack.")
    return named


def _attack(entry: Any, epsilon: Any) -> Attack:
    if isinstance(entry, str):
        if epsilon is None:
            raise ValueError(f"The attack {entry!r} given by name needs `epsilon=`.")
        return attacks_lib.get(entry, epsilon=epsilon)
    return attacks_lib.get(entry)


def _batches(
    data: Any, batch_size: int, max_examples: int | None
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields batches of NumPy inputs and int64 class indices."""
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1. Received {batch_size}.")
    left = float("inf") if max_examples is None else max_examples
    for element in _elements(data, batch_size):
        if not isinstance(element, (tuple, list)) or len(element) < 2:
            raise ValueError(
                f"The data must be pairs (x, y) with labels. Received {type(element)}."
            )
        x, y = tf.nest.map_structure(np.asarray, element[0]), _labels(element[1])
        size = int(min(len(y), left))
        if size:
            yield tf.nest.map_structure(lambda leaf, size=size: leaf[:size], x), y[:size]
        left -= size
        if left <= 0:
            return


def _elements(data: Any, batch_size: int) -> Iterator[Any]:
    if isinstance(data, tf.data.Dataset):
        yield from data
        return
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(
            f"`data` must be a pair (x, y) or a batched tf.data.Dataset. Received {type(data)}."
        )
    x, y = tf.nest.map_structure(np.asarray, data[0]), np.asarray(data[1])
    sizes = {len(leaf) for leaf in tf.nest.flatten(x)}
    if sizes != {len(y)}:
        raise ValueError(
            f"Inputs and labels must have equal lengths. Received {sizes} and {len(y)}."
        )
    for start in range(0, len(y), batch_size):
        part = slice(start, start + batch_size)
        yield tf.nest.map_structure(lambda leaf, part=part: leaf[part], x), y[part]


def _labels(y: Any) -> np.ndarray:
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] > 1:
        return labels.argmax(axis=1)
    if labels.ndim not in (1, 2):
        raise ValueError(
            "Labels must be class indices [batch] or one-hot [batch, classes], in batches. "
            f"Received shape {labels.shape}; batch the dataset if it is not."
        )
    return labels.reshape(-1).astype(np.int64)


def _check_ball(name: str, attack: Attack, clean: Any, adversarial: Any) -> None:
    """Raises RuntimeError unless every example is in the ball and in the bounds."""
    low, high = attack.bounds
    for old, new in zip(tf.nest.flatten(clean), tf.nest.flatten(adversarial), strict=True):
        if not tf.as_dtype(old.dtype).is_floating or not old.size:
            continue
        unit = 2.0**-7 if old.dtype.itemsize < 4 else 2.0**-23
        slack = 1e-7 + unit * float(np.abs(old.astype(np.float64)).max())
        change = np.abs(new.astype(np.float64) - old)
        outside = (
            not np.isfinite(change).all()
            or (change > attack.epsilon * (1 + 1e-6) + slack).any()
            or (low is not None and (new < np.minimum(low, old)).any())
            or (high is not None and (new > np.maximum(high, old)).any())
        )
        if outside:
            raise RuntimeError(
                f"The attack {name} left its ball or its bounds: it changed an input by up to "
                f"{change.max():g} for epsilon {attack.epsilon.tolist()}, and its results span "
                f"[{new.min():g}, {new.max():g}] for bounds {attack.get_config()['bounds']}."
            )


@contextlib.contextmanager
def _progress(
    verbose: int, data: Any, batch_size: int, max_examples: int | None
) -> Iterator[Callable[[int], None]]:
    """Shows a bar of examples done; gives a function to advance it."""
    if not verbose:
        yield lambda count: None
        return
    from rich import progress as rich_progress

    total = None
    if isinstance(data, (tuple, list)) and len(data) == 2:
        total = len(data[1]) if max_examples is None else min(len(data[1]), max_examples)
    elif max_examples is not None:
        total = max_examples
    columns = [*rich_progress.Progress.get_default_columns(), rich_progress.MofNCompleteColumn()]
    with rich_progress.Progress(*columns, transient=True) as bar:
        task = bar.add_task("Attacking", total=total)
        yield lambda count: bar.update(task, advance=count)
