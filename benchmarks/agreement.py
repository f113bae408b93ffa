# SPDX-License-Identifier: Apache-2.0
r"""How many images a model still gets right under the same attack by each of three libraries.

This library, CleverHans and ART attack the first MNIST test images with the same loss, bounds,
radius, steps and number of random starts. A random start decides about few images, so only the
first starts attack all of them; the others attack those that were not always right or always wrong
by then, whichever the library. Files of compressed models are stripped first. Written
down is whether robust accuracies are within half a point, and whether ours is the weaker attack.

    taskset -c 0 python benchmarks/agreement.py --threads 1 \
        --model_file dense.keras,polished.keras --out benchmarks/results/attacks/agreement.json
"""

from __future__ import annotations

import logging
import math
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common import load_plain  # noqa: E402
from tfmot_atmc.interop import to_art, to_cleverhans  # noqa: E402

from tfmot_atmc import datasets  # noqa: E402
from tfmot_atmc.attacks import FGSM, PGD  # noqa: E402
from tfmot_atmc.utils.files import write_json  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_list("model_file", [], "Trained .keras files.")
flags.DEFINE_integer("images", 1000, "How many images, the first ones.", lower_bound=1)
flags.DEFINE_integer("steps", 16, "Steps of PGD, each of 1.25 epsilon / steps.", lower_bound=2)
flags.DEFINE_integer("starts", 20, "Random starts.", lower_bound=4)
flags.DEFINE_float("epsilon", 76 / 255, "Radius in input units.")
flags.DEFINE_float("l2_epsilon", 2.0, "Radius of the l2 attacks.")
flags.DEFINE_integer("batch_size", 128, "Images attacked at once.", lower_bound=1)
flags.DEFINE_integer("threads", 0, "Threads of this process; 0 for all cores.")
flags.DEFINE_string("out", None, "JSON file to write the figures to.")

# Robust accuracies of the same attack should not be further apart.
TOLERANCE = 0.005
# Random starts that attack all images.
FIRST_STARTS = 4


class Case(NamedTuple):
    """One attack as all libraries have it; a single step without a start is FGSM."""

    title: str
    norm: str
    epsilon: float
    step: float
    steps: int
    starts: int  # 0: from the image itself


def cases() -> list[Case]:
    """Returns the attacks that are compared."""
    found = []
    for norm, epsilon in (("linf", FLAGS.epsilon), ("l2", FLAGS.l2_epsilon)):
        step = 1.25 * epsilon / FLAGS.steps
        pgd = f"PGD-{FLAGS.steps}"
        found += [
            Case(f"{norm} FGSM", norm, epsilon, epsilon, 1, 0),
            Case(f"{norm} {pgd}", norm, epsilon, step, FLAGS.steps, 0),
        ]
    started = found[1]._replace(title=f"{found[1].title}, random start", starts=FLAGS.starts)
    return [*found[:2], started, *found[2:]]


# From images, labels and the number of the start to adversarial images.
Batchwise = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def case_ours(model: keras.Model, case: Case) -> Batchwise:
    """Returns the case by this library."""
    common: dict[str, Any] = {"epsilon": case.epsilon, "norm": case.norm, "step_size": case.step}
    attack = (
        FGSM(**common)
        if case.steps == 1
        else PGD(**common, steps=case.steps, random_start=case.starts > 0)
    )
    return lambda x, y, start: attack(model, x, y, seed=start).numpy()


def case_cleverhans(model: keras.Model, case: Case) -> Batchwise:
    """Returns the case by CleverHans."""
    from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    logits = to_cleverhans(model)
    norm = np.inf if case.norm == "linf" else 2
    bounds: dict[str, float] = {"clip_min": 0.0, "clip_max": 1.0}

    def run(x: np.ndarray, y: np.ndarray, start: int) -> np.ndarray:
        tf.random.set_seed(start)
        inputs, labels = tf.constant(x), tf.constant(y)
        if case.steps == 1:
            found = fast_gradient_method(logits, inputs, case.epsilon, norm, y=labels, **bounds)
        else:
            found = projected_gradient_descent(
                logits,
                inputs,
                case.epsilon,
                case.step,
                case.steps,
                norm,
                y=labels,
                rand_init=case.starts > 0,
                **bounds,
            )
        return found.numpy()

    return run


def case_art(model: keras.Model, case: Case) -> Batchwise:
    """Returns the case by ART."""
    from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent

    common: dict[str, Any] = {
        "norm": np.inf if case.norm == "linf" else 2,
        "eps": case.epsilon,
        "batch_size": FLAGS.batch_size,
    }
    attack = (
        FastGradientMethod(to_art(model), **common)
        if case.steps == 1
        else ProjectedGradientDescent(
            to_art(model),
            **common,
            eps_step=case.step,
            max_iter=case.steps,
            num_random_init=int(case.starts > 0),
            verbose=False,
        )
    )

    def run(x: np.ndarray, y: np.ndarray, start: int) -> np.ndarray:
        np.random.seed(start)
        return attack.generate(x, np.eye(10, dtype="float32")[y])

    return run


LIBRARIES: dict[str, Callable[[keras.Model, Case], Batchwise]] = {
    "ours": case_ours,
    "CleverHans": case_cleverhans,
    "ART": case_art,
}


def still_right(
    model: keras.Model,
    attack: Batchwise,
    case: Case,
    x: np.ndarray,
    y: np.ndarray,
    starts: range,
) -> np.ndarray:
    """Returns which images stay right, bool `[starts, images]`; checks the ball on the way."""
    found = []
    for start in starts:
        for begin in range(0, len(x), FLAGS.batch_size):
            part = slice(begin, begin + FLAGS.batch_size)
            number = 1000 * start + begin // FLAGS.batch_size
            adversarial = attack(x[part], y[part], number)
            change = (adversarial - x[part]).astype("float64").reshape(len(x[part]), -1)
            order = np.inf if case.norm == "linf" else 2
            length = np.linalg.norm(change, order, axis=1).max()
            if (
                length > case.epsilon * 1.0001
                or not 0 <= adversarial.min() <= adversarial.max() <= 1
            ):
                raise RuntimeError(f"{case.title} left its ball or the bounds: {length:g}.")
            found.append(model(adversarial, training=False).numpy().argmax(axis=1) == y[part])
    return np.concatenate(found).reshape(-1, len(x))


def all_right(
    model: keras.Model, case: Case, x: np.ndarray, y: np.ndarray
) -> tuple[dict[str, np.ndarray], int]:
    """Returns which images stay right by each library, and how many images starts decide about."""
    attacks = {name: make(model, case) for name, make in LIBRARIES.items()}
    first = range(min(FIRST_STARTS, case.starts) or 1)
    rights = {name: still_right(model, a, case, x, y, first) for name, a in attacks.items()}
    together = np.concatenate(list(rights.values()))
    open_ = np.flatnonzero(together.any(axis=0) & ~together.all(axis=0))
    if not case.starts or not open_.size:
        return rights, 0
    rest = range(len(first), case.starts)
    for name, attack in attacks.items():
        more = np.repeat(rights[name][:1], len(rest), axis=0)
        more[:, open_] = still_right(model, attack, case, x[open_], y[open_], rest)
        rights[name] = np.concatenate([rights[name], more])
    return rights, int(open_.size)


def compare(rights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the figures of one case, and whether the libraries agree."""
    n = rights["ours"].shape[1]
    each = {name: right.mean(axis=1) for name, right in rights.items()}
    row: dict[str, Any] = {
        "accuracy": {name: float(values.mean()) for name, values in each.items()},
        "accuracy_of_each_start": {name: values.tolist() for name, values in each.items()},
        "accuracy_under_all_starts": {
            name: float(right.all(axis=0).mean()) for name, right in rights.items()
        },
        "images_judged_differently": {
            name: int((right[0] != rights["ours"][0]).sum())
            for name, right in rights.items()
            if name != "ours"
        },
    }
    row["spread"] = max(row["accuracy"].values()) - min(row["accuracy"].values())
    # What random starts make of the mean: twice its standard error, and at least one image.
    starts = len(each["ours"])
    errors = [np.var(values, ddof=1) / starts for values in each.values()] if starts > 1 else [0.0]
    row["noise"] = max(1 / n, 2 * math.sqrt(2 * max(errors)))
    row["ours_above_the_strongest"] = row["accuracy"]["ours"] - min(row["accuracy"].values())
    row["agree"] = row["spread"] <= TOLERANCE + 1e-9
    row["ours_is_not_weaker"] = row["ours_above_the_strongest"] <= row["noise"] + 1e-9
    return row


def measure(model: keras.Model, title: str, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Runs every case by every library on one model; returns and prints the figures."""
    clean = float((model.predict(x, verbose=0).argmax(axis=1) == y).mean())
    print(f"\n{title}, {len(x)} images, clean {clean:.1%}; robust accuracy in %")
    print(f"{'':<30}" + "".join(f"{name:>12}" for name in LIBRARIES) + "   spread")
    rows = {}
    for case in cases():
        rights, decided = all_right(model, case, x, y)
        row = {**case._asdict(), **compare(rights), "images_that_starts_decide": decided}
        rows[case.title] = row
        say(case, rows[case.title])
    return {"clean": clean, "attacks": rows}


def say(case: Case, row: dict[str, Any]) -> None:
    """Prints the figures of one case."""
    lines = {case.title: "accuracy"}
    if case.starts:
        lines[f"  worst of {case.starts} starts"] = "accuracy_under_all_starts"
    for title, kind in lines.items():
        cells = "".join(f"{100 * row[kind][name]:12.2f}" for name in LIBRARIES)
        spread = max(row[kind].values()) - min(row[kind].values())
        print(f"{title:<30}{cells}{100 * spread:9.2f}", flush=True)


def described() -> dict[str, Any]:
    """Returns how the figures were made."""
    packages = ("tensorflow", "keras", "cleverhans", "adversarial-robustness-toolbox")
    return {
        "command": "python benchmarks/agreement.py --model_file "
        + ",".join(Path(file).name for file in FLAGS.model_file)
        + f" --images {FLAGS.images} --starts {FLAGS.starts}",
        "images": f"first {FLAGS.images} MNIST test images",
        "versions": {
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in packages},
        },
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1 or not FLAGS.model_file:
        raise app.UsageError(f"Pass --model_file. Received {argv[1:]}.")
    if FLAGS.threads:
        tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    logging.getLogger("art").setLevel(logging.WARNING)
    data = datasets.load("mnist")
    x, y = data.x_test[: FLAGS.images], data.y_test[: FLAGS.images]
    found = {}
    for file in FLAGS.model_file:
        model = load_plain(file)
        found[Path(file).stem] = measure(model, Path(file).stem, x, y)
    verdict = {
        key: all(row[key] for one in found.values() for row in one["attacks"].values())
        for key in ("agree", "ours_is_not_weaker")
    }
    print(f"\nAll within {100 * TOLERANCE} points: {verdict['agree']}; ", end="")
    print(f"ours not weaker, beyond the noise of starts: {verdict['ours_is_not_weaker']}.")
    if FLAGS.out:
        Path(FLAGS.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(FLAGS.out, {**verdict, "tolerance": TOLERANCE, **described(), "models": found})


if __name__ == "__main__":
    app.run(main)
