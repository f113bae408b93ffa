# SPDX-License-Identifier: Apache-2.0
"""Kills a study at random moments, starts it again, and compares its results with an unbroken run.

    python benchmarks/study_kill.py --kills 5

A small study on digits, once without interruption and once killed (SIGKILL to the process that was
started; its workers have to notice by themselves). `results.json` and `results.csv` must be the
same byte for byte; the exit code is 1 where they are not.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

KILLS = flags.DEFINE_integer("kills", 5, "How often to kill the study.", lower_bound=1)
JOBS = flags.DEFINE_integer("jobs", 2, "Processes of the study.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")
WORK = flags.DEFINE_string("work", None, "Folder for both runs; None for a temporary one.")
EARLIEST = flags.DEFINE_float("earliest", 0.2, "Earliest moment, as a part of an unbroken run.")
LATEST = flags.DEFINE_float("latest", 0.5, "Latest moment, as a part of an unbroken run.")

STUDY = """
name: killed
data: digits
methods: [al0, atmc]
ratios: 0.2
bits: [32, 3]
quantize_afterwards: uniform
phases: pruning
training: {pgd: {attack: pgd, steps: 2}}
test: {PGD-8: {attack: pgd, steps: 8}, FGSM: {attack: fgsm}}
seeds: [0]
dense_epochs: 6
epochs: 6
limit: 640
"""
RESULTS = ("results.json", "results.csv")


def start(description: Path, out: Path) -> subprocess.Popen[bytes]:
    """Starts the study; its output goes to a file beside its folder."""
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tfmot_atmc", "study", description, "--out", out]
            + ["--jobs", str(JOBS.value), "--threads", "1"],
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def done(out: Path) -> int:
    """How many jobs are done."""
    return len(list(out.glob("work/*/job.json")))


def compare(work: Path) -> bool:
    """Runs the study both ways; tells whether the results are the same."""
    description = work / "killed.yaml"
    description.write_text(STUDY)
    begin = time.monotonic()
    if start(description, work / "whole").wait():
        raise RuntimeError(f"The study failed: see {work / 'whole.log'}.")
    whole = time.monotonic() - begin
    print(f"unbroken: {whole:.0f} s, {done(work / 'whole')} jobs", flush=True)
    moments = random.Random(SEED.value)
    kills = 0
    while True:
        process = start(description, work / "killed")
        wait = moments.uniform(EARLIEST.value, LATEST.value) * whole
        try:
            code = process.wait(wait if kills < KILLS.value else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            count = done(work / "killed")
            print(f"kill {kills} after {wait:.1f} s, {count} jobs done", flush=True)
            continue
        if code:
            raise RuntimeError(f"The killed study failed: see {work / 'killed.log'}.")
        break
    found = [[(work / run / n).read_bytes() for n in RESULTS] for run in ("whole", "killed")]
    same = found[0] == found[1]
    print(f"killed {kills} times: results are {'the same' if same else 'NOT the same'}")
    return same and kills == KILLS.value


def main(_: list[str]) -> int:
    if WORK.value is not None:
        Path(WORK.value).mkdir(parents=True, exist_ok=True)
        return int(not compare(Path(WORK.value)))
    with tempfile.TemporaryDirectory() as folder:
        return int(not compare(Path(folder)))


if __name__ == "__main__":
    app.run(main)
