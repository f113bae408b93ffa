# SPDX-License-Identifier: Apache-2.0
r"""Times each attack that CleverHans or ART also have, beside theirs, in one process.

All attack the same images of the same LeNet with the same number of steps of the same size, or of
queries. The variants of an attack take turns, since a shared machine's speed varies from minute to
minute: compare within a run only. What is left right and the loss are written down beside the
times, as the means over all timed runs, so that a fast but weak attack shows. Ours is called as a
user would, CleverHans within a `tf.function` where that works, and ART on its TensorFlow 2
classifier; the logits are a graph for both. FAB and WRM have no counterpart in either library,
APGD and Square none in CleverHans; APGD-T is not timed. Without `--model_file` the LeNet is
untrained and the images are noise: APGD and Square stop early on what falls easily.

    python benchmarks/attack_speed.py --model_file dense.keras --threads 1 \
        --out benchmarks/results/attacks/attack_speed.json
"""

from __future__ import annotations

import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common import load_plain  # noqa: E402
from tfmot_atmc.interop import to_art, to_cleverhans  # noqa: E402

from tfmot_atmc import attacks, datasets, models  # noqa: E402
from tfmot_atmc.utils.files import write_json  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string("model_file", None, "Trained .keras file of an MNIST classifier.")
flags.DEFINE_integer("batch_size", 64, "Images in the attacked batch.", lower_bound=1)
flags.DEFINE_integer("steps", 16, "Steps of the attacks with a fixed step.", lower_bound=1)
flags.DEFINE_integer("apgd_steps", 50, "Steps of APGD.", lower_bound=1)
flags.DEFINE_integer("queries", 250, "Queries of Square for each image.", lower_bound=1)
flags.DEFINE_float("epsilon", 76 / 255, "Radius in input units.")
flags.DEFINE_float("l2_epsilon", 2.0, "Radius of the l2 attack.")
flags.DEFINE_integer("traces", 2, "Times each variant is made anew.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "Timed runs of each trace, in turns.", lower_bound=1)
flags.DEFINE_list("only", [], "Titles of the attacks to time; all if empty.")
flags.DEFINE_integer("threads", 0, "Threads of this process; 0 for all cores.")
flags.DEFINE_string("out", None, "JSON file to write the figures to.")

# What CleverHans and ART call our attacks; of ART's PGD, BIM is the one without a start.
_NAMES = {
    "FGSM": ("fast_gradient_method", "FastGradientMethod"),
    "BIM": ("basic_iterative_method", "ProjectedGradientDescent"),
    "PGD": ("projected_gradient_descent", "ProjectedGradientDescent"),
    "MIFGSM": ("momentum_iterative_method", "MomentumIterativeMethod"),
}

# From images, labels and the number of the run to adversarial images.
Batchwise = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
Maker = Callable[[keras.Model], Batchwise]


class Family(NamedTuple):
    """One attack, as the libraries have it."""

    title: str
    epsilon: float
    norm: str
    makers: dict[str, Maker]


def ours(name: str, **options: Any) -> Maker:
    """Returns a maker of our attack, called as a user calls it."""

    def make(model: keras.Model) -> Batchwise:
        attack = getattr(attacks, name)(**options)
        return lambda x, y, run: attack(model, x, y, seed=run).numpy()

    return make


def cleverhans(name: str, graph: bool, **options: Any) -> Maker:
    """Returns a maker of CleverHans's attack, within a `tf.function` or called as it comes."""

    def make(model: keras.Model) -> Batchwise:
        module = __import__(f"cleverhans.tf2.attacks.{name}", fromlist=[name])
        logits = to_cleverhans(model)

        def attack(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
            return getattr(module, name)(
                logits, x, y=y, clip_min=0.0, clip_max=1.0, sanity_checks=False, **options
            )

        function = tf.function(attack) if graph else attack
        return lambda x, y, run: function(tf.constant(x), tf.constant(y)).numpy()

    return make


def art(name: str, **options: Any) -> Maker:
    """Returns a maker of ART's attack."""

    def make(model: keras.Model) -> Batchwise:
        from art.attacks import evasion

        classifier = with_loss(to_art(model))
        attack = getattr(evasion, name)(classifier, batch_size=FLAGS.batch_size, **options)

        def run(x: np.ndarray, y: np.ndarray, run: int) -> np.ndarray:
            np.random.seed(run)
            return attack.generate(x, np.eye(classifier.nb_classes, dtype="float32")[y])

        return run

    return make


def with_loss(classifier: Any) -> Any:
    """Returns ART's classifier with a loss for each example that Keras 3 can run.

    Its own asks for `keras.losses.Reduction`, which is no more; its APGD needs it.
    """

    def compute_loss(x: np.ndarray, y: np.ndarray, **_: Any) -> np.ndarray:
        return tf.nn.softmax_cross_entropy_with_logits(y, classifier.model(x)).numpy()

    classifier.compute_loss = compute_loss
    return classifier


def families() -> list[Family]:
    """Returns all attacks with the variants there are."""
    linf = {"FGSM": 1, **dict.fromkeys(("BIM", "PGD", "MIFGSM"), FLAGS.steps)}
    found = [gradient_steps(name, FLAGS.epsilon, "linf", steps) for name, steps in linf.items()]
    found.insert(3, gradient_steps("PGD", FLAGS.l2_epsilon, "l2", FLAGS.steps))
    radius: dict[str, Any] = {"eps": FLAGS.epsilon, "verbose": False}
    own_steps = {"eps_step": 2 * FLAGS.epsilon, "max_iter": FLAGS.apgd_steps, "nb_random_init": 1}
    apgd = {
        "ours": ours("APGD", epsilon=FLAGS.epsilon, steps=FLAGS.apgd_steps),
        "ART, loss mended": art("AutoProjectedGradientDescent", **radius, **own_steps),
    }
    square = {
        "ours": ours("Square", epsilon=FLAGS.epsilon, queries=FLAGS.queries),
        "ART": art("SquareAttack", **radius, max_iter=FLAGS.queries),
    }
    found += [Family(f"APGD-CE, {FLAGS.apgd_steps} steps", FLAGS.epsilon, "linf", apgd)]
    found += [Family(f"Square, {FLAGS.queries} queries", FLAGS.epsilon, "linf", square)]
    return found


def gradient_steps(name: str, epsilon: float, norm: str, steps: int) -> Family:
    """Returns an attack of steps of a fixed size; PGD in l-infinity starts at random."""
    start = name == "PGD" and norm == "linf"
    step = epsilon if name == "FGSM" else 1.25 * epsilon / steps
    mine: dict[str, Any] = {"epsilon": epsilon, "norm": norm, "step_size": step}
    theirs: dict[str, Any] = {"eps": epsilon, "norm": np.inf if norm == "linf" else 2}
    arts = dict(theirs)
    if name != "FGSM":
        mine["steps"] = steps
        theirs |= {"eps_iter": step, "nb_iter": steps}
        arts |= {"eps_step": step, "max_iter": steps, "verbose": False}
    if name == "PGD":
        mine["random_start"] = start
        theirs |= {"rand_init": float(start), "rand_minmax": epsilon}
    if _NAMES[name][1] == "ProjectedGradientDescent":
        arts["num_random_init"] = int(start)
    title = name if norm == "linf" else f"{name} {norm}"
    makers = {
        "ours": ours(name, **mine),
        "CleverHans": cleverhans(_NAMES[name][0], True, **theirs),
        "CleverHans, eager": cleverhans(_NAMES[name][0], False, **theirs),
        "ART": art(_NAMES[name][1], **arts),
    }
    return Family(f"{title}, {steps} steps" if steps > 1 else title, epsilon, norm, makers)


def measure(
    family: Family, model: keras.Model, x: np.ndarray, y: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Returns the figures of each variant, times in milliseconds a batch, or why there are none."""
    kinds = ("wall_ms", "process_ms", "loss", "still_right")
    runs: dict[str, list[tuple[float, ...]]] = {name: [] for name in family.makers}
    refused = {}
    for trace in range(FLAGS.traces):
        variants = {}
        for name, make in family.makers.items():
            try:
                variant = make(model)
                variant(x, y, 0)
            except NotImplementedError as error:
                refused[name] = {"left_out": str(error)}
            else:
                variants[name] = variant
        for run in range(1 + trace * FLAGS.rounds, 1 + (trace + 1) * FLAGS.rounds):
            for name, variant in variants.items():
                wall, process = time.perf_counter(), time.process_time()
                adversarial = variant(x, y, run)
                process, wall = time.process_time() - process, time.perf_counter() - wall
                reached = strength(family, model, x, y, adversarial)
                runs[name].append((1e3 * wall, 1e3 * process, *reached))
    figures: dict[str, dict[str, Any]] = {}
    for name in variants:
        columns = dict(zip(kinds, zip(*runs[name], strict=True), strict=True))
        row = {kind: statistics.median(columns[kind]) for kind in kinds[:2]}
        row |= {kind.replace("_ms", "_min_ms"): min(columns[kind]) for kind in kinds[:2]}
        row |= {kind: statistics.fmean(columns[kind]) for kind in kinds[2:]}
        figures[name] = row
        for kind in kinds[:2]:
            row[kind.replace("_ms", "_ratio")] = row[kind] / figures["ours"][kind]
    return figures | refused


def strength(
    family: Family, model: keras.Model, x: np.ndarray, y: np.ndarray, adversarial: np.ndarray
) -> tuple[float, float]:
    """Returns the mean cross-entropy and the share still right; raises if a point is illegal."""
    change = (adversarial - x).astype("float64").reshape(len(x), -1)
    length = np.linalg.norm(change, np.inf if family.norm == "linf" else 2, axis=1).max()
    if length > family.epsilon * 1.0001 or not 0 <= adversarial.min() <= adversarial.max() <= 1:
        raise RuntimeError(f"{family.title} left its ball or the bounds: {length:g}.")
    logits = model(adversarial, training=False)
    loss = float(tf.reduce_mean(attacks.cross_entropy(tf.constant(y), logits)))
    return loss, float((logits.numpy().argmax(axis=1) == y).mean())


def victim() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """Returns the model, with images and labels."""
    if FLAGS.model_file:
        model = load_plain(FLAGS.model_file)
        data = datasets.load("mnist")
        return model, data.x_test[: FLAGS.batch_size], data.y_test[: FLAGS.batch_size]
    keras.utils.set_random_seed(0)
    model = models.lenet()
    shape = (FLAGS.batch_size, *model.input_shape[1:])
    x = np.random.default_rng(0).uniform(size=shape).astype("float32")
    return model, x, model.predict(x, verbose=0).argmax(axis=1)


def table(title: str, found: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """Returns the figures as a table."""
    page = Table(title=title)
    for head in ("attack", "by", "wall ms", "ratio", "process ms", "ratio", "loss", "still right"):
        page.add_column(head, justify="left" if head in ("attack", "by") else "right")
    for name, rows in found.items():
        for i, (variant, row) in enumerate(rows.items()):
            cells = ["does not run"]
            if "left_out" not in row:
                cells = [f"{row['wall_ms']:.1f}", f"{row['wall_ratio']:.2f}"]
                cells += [f"{row['process_ms']:.1f}", f"{row['process_ratio']:.2f}"]
                cells += [f"{row['loss']:.3f}", f"{row['still_right']:.1%}"]
            page.add_row("" if i else name, variant, *cells)
        page.add_section()
    return page


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    if FLAGS.threads:
        tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    logging.getLogger("art").setLevel(logging.WARNING)
    model, x, y = victim()
    name = Path(FLAGS.model_file).name if FLAGS.model_file else "untrained LeNet"
    found = {}
    for family in families():
        if not FLAGS.only or family.title.split(",")[0] in FLAGS.only:
            found[family.title] = measure(family, model, x, y)
            print(family.title, "done", flush=True)
    Console(width=100).print(table(f"{name}, a batch of {len(x)}; medians, ratios to ours", found))
    if FLAGS.out:
        kept = ("batch_size", "steps", "apgd_steps", "queries", "epsilon", "l2_epsilon")
        packages = ("tensorflow", "keras", "cleverhans", "adversarial-robustness-toolbox")
        report = {
            "model": name,
            **{flag: FLAGS[flag].value for flag in (*kept, "traces", "rounds", "threads")},
            "versions": {
                "python": platform.python_version(),
                **{package: metadata.version(package) for package in packages},
            },
            "attacks": found,
            "without_counterpart": ["FAB", "WRM"],
        }
        Path(FLAGS.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(FLAGS.out, report)


if __name__ == "__main__":
    app.run(main)
