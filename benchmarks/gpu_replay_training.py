# SPDX-License-Identifier: Apache-2.0
"""Trains on CIFAR-10 and attacks the result, with the programs of `gpu_training.py`.

    python benchmarks/gpu_replay_training.py --lowered lowered_training --data data --out run \
        --minutes 8 --stage "dense:15:0.2" --stage "ATMC 5%:8:0.1" --stage "ATMC 1%:10:0.1"

A stage is a method, its epochs and its highest learning rate; all but the first start from what
the first deploys. Programs compile while others run. After every stage the deployed weights and
the figures are written, and what is found there already is not trained again: a run that was cut
off goes on with `--out` at the next stage.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import time
import traceback
from pathlib import Path
from typing import Any

# The first of these sets what JAX reads when it is imported.
from gpu_replay import Replay, jax, np
from gpu_sections import write_json


class Data:
    """CIFAR-10, in the order and share in which it was packed, and its attacked test images."""

    def __init__(self, folder: Path, examples: int):
        labels = np.load(folder / "labels.npz")
        paths = [path for path in sorted(folder.glob("*.npz")) if path.stem in ("a", "b")]
        x = np.concatenate([unpacked(path) for path in paths])[:examples]
        numbers = np.concatenate([np.load(path)["numbers"] for path in paths])[:examples]
        y = labels["y"][numbers].astype(np.int32)
        self.number = len(x)
        # The programs take a whole training set; where less is at hand it is there repeatedly.
        times = -(-examples // len(x))
        self.x = jax.device_put(np.concatenate([x] * times)[:examples])
        self.y = jax.device_put(np.concatenate([y] * times)[:examples])
        self.test_x = unpacked(folder / "test.npz").astype(np.float32) / np.float32(255)
        self.test_y = labels["test_y"].astype(np.int32)


def unpacked(path: Path) -> np.ndarray:
    """Returns images that were packed in strips of lossless WebP."""
    import io

    from PIL import Image

    with np.load(path) as packed:
        ends = np.cumsum(packed["lengths"])
        data = packed["data"]
    pieces = [data[e - n : e].tobytes() for n, e in zip(np.diff([0, *ends]), ends, strict=True)]

    def read(piece: bytes) -> np.ndarray:
        strip = np.asarray(Image.open(io.BytesIO(piece)).convert("RGB"))
        return strip.reshape(-1, strip.shape[1], strip.shape[1], 3)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(read, pieces)))


class Programs:
    """Lowered programs that compile in the background."""

    def __init__(self, folder: Path, workers: int):
        jax.devices()  # begun by several threads at once, a client may crash
        self.all = {}
        for path in sorted(folder.glob("*.json")):
            replay = Replay(path.with_suffix(""))
            self.all[replay.name] = replay
        self.pool = concurrent.futures.ThreadPoolExecutor(workers)
        self.futures: dict[str, Any] = {}

    def begin(self, names: list[str]) -> None:
        """Starts to compile, in this order."""
        for name in names:
            if name in self.all and name not in self.futures:
                self.futures[name] = self.pool.submit(self.all[name].compile)

    def get(self, name: str) -> Replay:
        """Returns a program, compiled and with its first values."""
        self.begin([name])
        self.futures[name].result()
        program = self.all[name]
        if not program.arguments:
            program.start()
        return program


def place(program: Replay, values: dict[str, Any]) -> None:
    """Gives a program's parameters new values, by the variables' names."""
    for i, name in enumerate(program.about["names"]):
        if name and name in values:
            have = program.arguments[i]
            value = jax.numpy.asarray(values[name], have.dtype)
            if value.shape == have.shape:
                program.arguments[i] = value


def state(program: Replay) -> dict[str, np.ndarray]:
    """Returns the variables of a program by name."""
    names = program.about["names"]
    return {n: np.asarray(v) for n, v in zip(names, program.arguments, strict=True) if n}


def composed(values: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Returns the plain network's weights, W = (U + I)V + C folded, and counts of nonzeros."""
    plain, counts = {}, {"factors": 0, "folded": 0, "weights": 0}
    for name, value in values.items():
        layer = name.rsplit("/", 1)[0]
        if name.endswith(("kernel_U", "kernel_C")) or "momentum" in name:
            continue
        if name.endswith("/kernel"):
            factors = [values.get(f"{layer}/kernel_{part}") for part in "UC"]
            counts["factors"] += int(np.count_nonzero(value))
            if factors[0] is not None and factors[1] is not None:
                u, c = factors
                counts["factors"] += int(np.count_nonzero(u)) + int(np.count_nonzero(c))
                v = value.reshape(-1, value.shape[-1])
                mixed = v @ u if value.shape[-1] < len(v) else u @ v
                value = (v + mixed).reshape(value.shape) + c
            counts["folded"] += int(np.count_nonzero(value))
            counts["weights"] += value.size
        plain[name] = value
    return plain, counts


def rate(step: int, steps: int, highest: float) -> float:
    """Returns the learning rate: up from zero over 40% of the steps, then down to zero."""
    up = 0.4 * steps
    return highest * (step / up if step < up else (steps - step) / (steps - up))


def train(
    program: Replay,
    data: Data,
    epochs: int,
    highest: float,
    start: dict,
    seed: int,
    deadline: float,
) -> dict[str, Any]:
    """Trains one stage; returns its figures. Stops at the deadline."""
    batch = program.about["parameters"][2]["shape"][0]
    a_epoch = data.number // batch
    steps = epochs * a_epoch
    place(
        program,
        {**start, **{n: np.int32(steps) for n in program.about["names"] if n.endswith("/horizon")}},
    )
    program.arguments[0], program.arguments[1] = data.x, data.y
    random = np.random.default_rng(seed)
    history, began, step = [], time.monotonic(), 0
    for epoch in range(epochs):
        order = jax.device_put(
            random.permutation(data.number)[: a_epoch * batch]
            .reshape(a_epoch, batch)
            .astype(np.int32)
        )
        mark = time.monotonic()
        for i in range(a_epoch):
            program.arguments[2] = order[i]
            program.arguments[3] = jax.device_put(np.int32(step))
            program.arguments[4] = jax.device_put(np.float32(rate(step + 1, steps + 1, highest)))
            outputs = program.call()
            step += 1
            if i % 50 == 49:
                jax.block_until_ready(outputs)  # so that the queue cannot grow without end
                if time.monotonic() > deadline:
                    return {"stopped_at_step": step, "steps": steps, "history": history}
        figures = dict(zip(program.about["outputs"], [float(o) for o in outputs], strict=False))
        seconds = time.monotonic() - mark
        history.append({"epoch": epoch, "seconds": seconds, **figures})
        print(epoch, history[-1], flush=True)
    return {
        "steps": steps,
        "seconds": time.monotonic() - began,
        "images_a_second": steps * batch / (time.monotonic() - began),
        "history": history,
    }


def in_batches(program: Replay, x: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Returns the program's output for all examples; the last batch is filled up."""
    batch = program.about["parameters"][0]["shape"][0]
    found = []
    for at in range(0, len(x), batch):
        rows = np.arange(at, at + batch) % len(x)
        for i, array in enumerate((x, *others)):
            program.arguments[i] = jax.device_put(array[rows])
        found.append(np.asarray(program.call()[0])[: len(x) - at])
    return np.concatenate(found)


class Examination:
    """A trained network under attacks, each of which takes what the ones before have left.

    What counts is the prediction in float32 for what an attack returns, where that is in the ball.

    Args:
        programs: among them `predict` and the attacks.
        weights: of the plain network.
        data: with the test images.
    """

    def __init__(self, programs: Programs, weights: dict, data: Data):
        self._programs, self._weights, self._data = programs, weights, data
        self.left = np.flatnonzero(self._right(data.test_x, data.test_y))
        total = len(data.test_x)
        self.figures: dict[str, Any] = {
            "images": total,
            "clean": len(self.left) / total,
            "attacks": {},
        }

    def _right(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        predict = self._programs.get("predict")
        place(predict, self._weights)
        return in_batches(predict, x).argmax(1) == y

    def attack(self, name: str, keep: bool = True) -> None:
        """Runs one attack; without `keep` its successes are only looked at."""
        if not len(self.left):
            return
        began = time.monotonic()
        program = self._programs.get(f"attack {name}")
        place(program, self._weights)
        program.arguments[2] = jax.device_put(np.array([7, 0], np.int64))
        x, y = self._data.test_x[self.left], self._data.test_y[self.left]
        found = in_batches(program, x, y)
        inside = np.abs(found - x).max(axis=(1, 2, 3)) <= 8 / 255 + 1e-6
        inside &= (found.min(axis=(1, 2, 3)) >= 0) & (found.max(axis=(1, 2, 3)) <= 1)
        held = self._right(found, y) | ~inside
        self.figures["attacks"][name] = {
            "left": float(held.sum() / self.figures["images"]),
            "seconds": time.monotonic() - began,
            "outside": int((~inside).sum()),
        }
        print(name, self.figures["attacks"][name], flush=True)
        if keep:
            self.left = self.left[held]


def save(path: Path, weights: dict[str, np.ndarray]) -> None:
    """Writes weights: nonzeros in float16 beside a bitmap of their places, the rest in float32."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        if value.size > 4096:
            arrays[f"bits:{name}"] = np.packbits(value.reshape(-1) != 0)
            arrays[f"values:{name}"] = value[value != 0].astype(np.float16)
            arrays[f"shape:{name}"] = np.array(value.shape)
        else:
            arrays[f"whole:{name}"] = value
    np.savez_compressed(path, **arrays)


def load(path: Path) -> dict[str, np.ndarray]:
    """Reads what `save` wrote."""
    found = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            kind, name = key.split(":", 1)
            if kind == "whole":
                found[name] = arrays[key]
            if kind == "bits":
                shape = arrays[f"shape:{name}"]
                mask = np.unpackbits(arrays[key], count=int(np.prod(shape))).astype(bool)
                value = np.zeros(mask.shape, np.float32)
                value[mask] = arrays[f"values:{name}"]
                found[name] = value.reshape(shape)
    return found


def weights_path(out: Path, name: str) -> Path:
    return out / f"{name.replace(' ', '_').replace('%', '')}.npz"


def one_stage(
    programs: Programs,
    data: Data,
    out: Path,
    stage: tuple[str, int, float],
    start: dict,
    seed: int,
    deadline: float,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Trains a stage, or takes what an earlier run trained; returns its figures and weights."""
    name, epochs, highest = stage
    path, figures = weights_path(out, name), {}
    if path.exists():
        weights = load(path)
    else:
        program = programs.get(f"train {name}")
        figures["compile_s"] = program.figures.get("compile_s")
        figures |= train(program, data, epochs, highest, start, seed, deadline)
        everything, figures["nonzeros"] = composed(state(program))
        wanted = programs.all["predict"].about["names"]
        weights = {n: v for n, v in everything.items() if n in wanted}
        program.arguments = []
        if "stopped_at_step" not in figures:
            save(path, weights)
    examination = Examination(programs, weights, data)
    examination.attack("pgd", keep=False)
    return figures | examination.figures, weights


def attacked(
    programs: Programs,
    trained: dict[str, dict],
    data: Data,
    attacks: list[str],
    deadline: float,
    report: dict[str, Any],
    out: Path,
) -> None:
    """Attacks all networks, by one attack after another, as far as the time allows."""
    examinations: dict[str, Examination] = {}
    for attack in attacks:
        for name, weights in trained.items():
            if time.monotonic() > deadline:
                return
            try:
                if name not in examinations:
                    examinations[name] = Examination(programs, weights, data)
                examinations[name].attack(attack)
            except Exception as error:
                traceback.print_exc()
                report["stages"][name].setdefault("failed_attacks", {})[attack] = str(error)[:300]
                continue
            report["stages"][name]["autoattack"] = examinations[name].figures
            write_json(out / "training.json", report)


def run(arguments: argparse.Namespace) -> None:
    """Trains the stages one after another, measures each, and keeps what there is."""
    deadline = time.monotonic() + 60 * arguments.minutes
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    programs = Programs(Path(arguments.lowered), arguments.workers)
    stages = [(n, int(e), float(r)) for n, e, r in (s.split(":") for s in arguments.stage)]
    attacks = [a for a in arguments.attacks.split(",") if a]
    order = [f"train {stages[0][0]}", "predict", "attack pgd"]
    order += [f"train {name}" for name, *_ in stages[1:]] + [f"attack {a}" for a in attacks]
    programs.begin(order)
    any_train = next(p for n, p in programs.all.items() if n.startswith("train"))
    data = Data(Path(arguments.data), any_train.about["parameters"][0]["shape"][0])
    device = jax.devices()[0].device_kind
    report: dict[str, Any] = {"device": device, "examples": data.number, "stages": {}}
    print(device, data.number, "images", flush=True)
    trained: dict[str, dict] = {}
    last_start = time.monotonic() + 60 * arguments.train_minutes
    for number, stage in enumerate(stages):
        if time.monotonic() > last_start and not weights_path(out, stage[0]).exists():
            continue
        try:
            start = next(iter(trained.values()), {})
            figures, weights = one_stage(programs, data, out, stage, start, number, deadline - 15)
            trained[stage[0]] = weights
        except Exception as error:  # what one stage cannot do must not cost the others
            traceback.print_exc()
            figures = {"failed": str(error)[:600]}
        report["stages"][stage[0]] = figures
        write_json(out / "training.json", report)
    attacked(programs, trained, data, attacks, deadline, report, out)
    report["compile_s"] = {n: p.figures.get("compile_s") for n, p in programs.all.items()}
    write_json(out / "training.json", report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lowered", required=True, help="Folder of lowered programs.")
    parser.add_argument("--data", required=True, help="Folder of the packed images.")
    parser.add_argument("--out", required=True, help="Folder for figures and weights.")
    parser.add_argument("--minutes", type=float, default=5.0, help="Time to end in.")
    parser.add_argument("--train_minutes", type=float, default=3.0, help="No stage begins later.")
    parser.add_argument("--stage", action="append", required=True, help="METHOD:EPOCHS:RATE")
    parser.add_argument("--attacks", default="apgd-ce,apgd-t,fab-t,square")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    run(parser.parse_args())
    os._exit(0)  # threads that still compile must not hold it up


if __name__ == "__main__":
    main()
