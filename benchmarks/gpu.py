# SPDX-License-Identifier: Apache-2.0
r"""What a GPU makes of the library, in sections, within the minutes given.

    python benchmarks/gpu.py --out gpu --minutes 14

The sections, most important first; each writes `SECTION.json` after every figure:

* `correctness`: a train step of every method, attack and objective as one XLA program, its results
  beside those of a CPU without XLA; what leaves the device, or has a shape known at run time only.
* `ratios`: the step of ATMC to the plain PGD step, attacks to CleverHans's, ART's and their floor,
  XLA to plain `tf.function`; precisions, batch sizes, share of the peak, memory.
* `selection`: projection and zero k-means of 10^7 and 10^8 weights, beside `tf.math.top_k` and a
  copy.
* `training`: a dense network on CIFAR-10, then compressed ones, with AutoAttack; a run goes on
  where the one before ended.

It ends in time: sections run in a process of their own, which is ended where it overruns.
`--smoke` does all of it at toy size, on a CPU too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gpu_sections import Section, in_turns, read_json, summary, supervise, write_json  # noqa: E402

if TYPE_CHECKING:
    from gpu_programs import Program

# Share of the minutes for each section.
SHARES = {"correctness": 0.25, "ratios": 0.35, "selection": 0.1, "training": 0.3}
# A time limit is noticed between two figures only; a section is not begun for less than this.
_LEAST = 1.0


def about() -> dict[str, Any]:
    """Returns what the figures were taken with."""
    import keras
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(device) for device in devices]
    return {
        "devices": [detail.get("device_name", "GPU") for detail in details] or ["CPU"],
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
    }


def compiled(program: Program, jit: bool = True) -> Callable[[], Any]:
    """Returns a call of a program that returns its outputs, perhaps before they are there."""
    import tensorflow as tf

    function, inputs = program.make()
    run = tf.function(function, jit_compile=jit, autograph=False)
    tensors = [tf.constant(array) for array in inputs]
    return lambda: run(*tensors)


def wait(outputs: Any) -> None:
    """Waits for outputs."""
    import tensorflow as tf

    for leaf in tf.nest.flatten(outputs)[-1:]:
        tf.reshape(leaf, [-1])[:1].numpy()


@contextlib.contextmanager
def counted_memory(figures: dict[str, Any]) -> Iterator[None]:
    """Adds the peak of the GPU's memory inside the context to figures."""
    import tensorflow as tf

    if not tf.config.list_logical_devices("GPU"):
        yield
        return
    tf.config.experimental.reset_memory_stats("GPU:0")
    yield
    figures["memory_bytes"] = tf.config.experimental.get_memory_info("GPU:0")["peak"]


# --- sections -------------------------------------------------------------------------------------


def correctness(section: Section, programs: list[Program]) -> None:
    """Takes one step of each program by XLA, and one on the CPU without it."""
    import numpy as np
    import tensorflow as tf
    from gpu_lowering import faults, flat_outputs, lower
    from gpu_programs import precision

    for program in programs:
        if section.left < _LEAST:
            section.leave_out(program.name)
            continue
        with precision("float32"):
            with tf.device("CPU:0"):
                wanted = dict(flat_outputs(compiled(program, jit=False)()))
            got = dict(flat_outputs(compiled(program)()))
            function, inputs = program.make()
            leaves = faults(lower(function, inputs).module)
        apart = {
            name: float(np.abs(got[name] - value) / np.maximum(np.abs(value), 1e-6))
            for name, value in wanted.items()
        }
        values = {name: [float(got[name]), float(value)] for name, value in wanted.items()}
        section.add(program.name, {"relative": apart, "values": values, "leaves_device": leaves})


def timed(section: Section, programs: list[Program]) -> None:
    """Times the programs of each group in turns; the first of a group also without XLA."""
    import keras
    from gpu_programs import precision

    groups: dict[str, list[Program]] = {}
    for program in programs:
        groups.setdefault(program.group, []).append(program)
    for number, (group, members) in enumerate(groups.items()):
        if section.left < _LEAST:
            section.leave_out(group)
            continue
        keras.utils.clear_session()
        calls, figures = {}, {}
        with precision(members[0].precision):
            for program in members:
                began, figures[program.name] = time.perf_counter(), {"group": group}
                with counted_memory(figures[program.name]):
                    calls[program.name] = compiled(program)
                    wait(calls[program.name]())
                figures[program.name]["first_s"] = time.perf_counter() - began
            if members[0].images:
                name = f"{members[0].name}, without XLA"
                calls[name], figures[name] = compiled(members[0], jit=False), {"group": group}
            # What is left is shared among the groups that are to come.
            seconds = min(5.0, max(section.left, 0.1) / (len(groups) - number) / 2)
            times = in_turns(calls, wait, seconds)
        base = sorted(times[members[0].name])[len(times[members[0].name]) // 2]
        facts = {program.name: program._asdict() for program in members}
        for name, series in times.items():
            fact = facts.get(name, facts[members[0].name])
            section.add(name, figures[name] | summary(series, base, fact))


def art(section: Section, smoke: bool) -> None:
    """Times ART's attack, which is no program of its own, beside ours in turns."""
    import numpy as np
    from gpu_programs import EPSILON, images, network

    try:
        from art.attacks.evasion import ProjectedGradientDescent
    except ImportError:
        section.report["without"] = "ART, which is not installed"
        return
    import tfmot_atmc as atmc

    name, batch, count = ("resnet20", 4, 1) if smoke else ("resnet18", 128, 10)
    model, (x, y) = network(name), images(batch, (32, 32, 3))
    attack = atmc.attacks.BIM(epsilon=EPSILON, steps=count, step_size=2 / 255)
    theirs = ProjectedGradientDescent(
        atmc.interop.to_art(model),
        eps=EPSILON,
        eps_step=2 / 255,
        max_iter=count,
        batch_size=batch,
        verbose=False,
    )
    labels = np.eye(10, dtype=np.float32)[y]
    calls = {
        f"BIM as called, {name}": lambda: attack(model, x, y),
        f"ART's BIM, {name}": lambda: theirs.generate(x, labels),
    }
    times = in_turns(calls, wait, 5.0)
    base = sorted(next(iter(times.values())))[2]
    for title, series in times.items():
        section.add(title, {"group": "ART"} | summary(series, base, {"images": batch}))


def training(section: Section, out: Path, smoke: bool) -> None:
    """Trains what is not trained yet, each method from the dense network; then AutoAttack."""
    import keras

    import tfmot_atmc as atmc

    data = atmc.datasets.load("digits", limit=64) if smoke else atmc.datasets.load("cifar10")
    m = atmc.methods
    jobs = {"dense": (m.DA(), 1 if smoke else 15, 0.2)}
    for ratio in (0.05, 0.01):
        for name, method in (("ATMC", m.ATMC), ("A-l0", m.AL0), ("AP", m.AP)):
            jobs[f"{name} {ratio}"] = (method(ratio), 10, 0.1)
    if smoke:
        jobs = {"dense": jobs["dense"], "ATMC 0.05": (m.ATMC(0.05), 1, 0.1)}
    dense = out / "dense.keras"
    for name, (method, epochs, rate) in jobs.items():
        path = out / f"{name}.keras"
        if section.left < _LEAST or (name != "dense" and not dense.exists()):
            section.leave_out(name)
            continue
        if not path.exists():
            start = keras.saving.load_model(dense) if dense.exists() else None
            fit(path, start, method, epochs, rate, data, section, smoke)
    for name in jobs:
        path, report = out / f"{name}.keras", out / f"{name} attacked.json"
        if not path.exists() or section.left < _LEAST:
            section.leave_out(f"{name}, AutoAttack")
            continue
        if not report.exists():
            attack = "autoattack"
            if smoke:
                attack = atmc.attacks.AutoAttack(epsilon=8 / 255, steps=2, queries=2)
            found = atmc.evaluate_robustness(
                keras.saving.load_model(path),
                (data.x_test[: 8 if smoke else 1000], data.y_test[: 8 if smoke else 1000]),
                attacks=attack,
                epsilon=None if smoke else 8 / 255,
                checks=not smoke,
                state=out / f"{name} attacked.state",
                verbose=0,
            )
            figures = {"clean": found.clean_accuracy, "robust": found.robust_accuracy}
            write_json(report, figures)
        section.add(name, {"report": report.name, **read_json(report)})


def fit(
    path: Path,
    start: Any,
    method: Any,
    epochs: int,
    rate: float,
    data: Any,
    section: Section,
    smoke: bool,
) -> None:
    """Trains one network by the fast attack and saves it, if it ends in time."""
    import keras
    import numpy as np

    import tfmot_atmc as atmc

    batch = 16 if smoke else 128
    if start is None:
        start = atmc.models.small_cnn(seed=0) if smoke else atmc.models.resnet18(seed=0)
    small = atmc.compress(start, method=method, attack=atmc.attacks.RFGSM(epsilon=8 / 255))
    steps = epochs * (len(data.x_train) // batch)
    rises = 0.4 * steps
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(steps - int(rises), 1), warmup_target=rate, warmup_steps=int(rises)
    )
    small.compile(
        # Keras decays apart from the gradient: ten times the rate of what goes through momentum.
        keras.optimizers.SGD(schedule, momentum=0.9, weight_decay=5e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = atmc.datasets.EpochBatches(
        np.asarray(data.x_train),
        np.asarray(data.y_train),
        batch_size=batch,
        epoch=lambda: int(small.optimizer.iterations) // (len(data.x_train) // batch),
        augment=None if smoke else "crop_flip",
        drop_remainder=True,
    )

    class Stop(keras.callbacks.Callback):
        """Stops where the section's time is over."""

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = self.model.stop_training or section.left < _LEAST

    folder = path.with_suffix(".backup")
    callbacks = [
        keras.callbacks.BackupAndRestore(folder),
        atmc.callbacks.UpdateCompression(),
        Stop(),
    ]
    began = time.perf_counter()
    small.fit(batches, epochs=epochs, callbacks=callbacks, verbose=0)
    if int(small.optimizer.iterations) >= steps:
        atmc.strip_compression(small).save(path)
        section.add(f"{path.stem}, training", {"seconds": time.perf_counter() - began})


def run(arguments: argparse.Namespace, names: list[str]) -> None:
    """Runs sections in this process."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    from gpu_programs import sections

    out, programs = Path(arguments.out), sections(arguments.smoke)
    share = 60 * arguments.minutes / sum(SHARES[name] for name in names)
    for name in names:
        with contextlib.suppress(Exception), Section(out, name, share * SHARES[name], about()) as s:
            if name == "correctness":
                correctness(s, programs[name])
            elif name == "training":
                training(s, out, arguments.smoke)
            else:
                timed(s, programs[name])
                if name == "ratios":
                    art(s, arguments.smoke)
        print(name, "complete" if s.report["complete"] else "incomplete", flush=True)


def main() -> None:
    """Runs all sections in processes of their own; with `--within` some of them in this one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", required=True, help="Folder for the figures.")
    parser.add_argument("--minutes", type=float, default=14.0, help="Time for all sections.")
    parser.add_argument("--sections", default=",".join(SHARES), help="Which, by commas.")
    parser.add_argument("--smoke", action="store_true", help="Toy sizes.")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = [name for name in SHARES if name in arguments.sections.split(",")]
    if arguments.within:
        run(arguments, names)
        return

    def command(names: list[str], seconds: float) -> list[str]:
        line = [sys.executable, os.path.abspath(__file__), "--within", "--out", arguments.out]
        line += ["--sections", ",".join(names), "--minutes", str(seconds / 60)]
        return line + ["--smoke"] * arguments.smoke

    done = supervise(command, names, Path(arguments.out), 60 * arguments.minutes)
    print("complete:", ", ".join(done) or "nothing", flush=True)


if __name__ == "__main__":
    main()
