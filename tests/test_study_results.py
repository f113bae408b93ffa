# SPDX-License-Identifier: Apache-2.0
"""Studies: that runs go on to the same end, and what results, tables and figures say."""

import csv
import dataclasses
import importlib
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from documents import fill, study_table
from scipy import stats

from tests.test_study import ROOT, described, trained
from tfmot_atmc import cli
from tfmot_atmc.study import Description, StudyError, load_description, run_study, runner, workers
from tfmot_atmc.study.comparisons import compare, paired_difference
from tfmot_atmc.study.jobs import expand
from tfmot_atmc.study.tables import accuracies, comparisons
from tfmot_atmc.study.work import finished, folder_of
from tfmot_atmc.utils.files import write_json

# Most run with invented results; the last ones do real work.


def invented(job):
    """Accuracies that depend on the row alone: ATMC is 2, 4, 6 points ahead for seeds 0, 1, 2."""
    row = job.row
    ahead = 0.02 * (row["seed"] + 1) if row["method"] == "atmc" else 0.0
    clean = {"n": 100, "clean": 0.9, "clean_low": 0.85, "clean_high": 0.95}
    attacks = [
        {
            "name": test["name"],
            "epsilon": 0.15,
            "accuracy": 0.5 + ahead + row["ratio"] / 10 - 0.1 * number,
            "low": 0.1,
            "high": 0.9,
            "warnings": [],
            **clean,
        }
        for number, test in enumerate(job.configuration["test"])
    ]
    nonzeros = round(1000 * row["ratio"])
    return {
        "nonzeros": nonzeros,
        "dense_parameters": 1000,
        "max_distinct": 5,
        "paper_bits": nonzeros * row["bits"],
        "paper_ratio": nonzeros * row["bits"] / 32000,
        "clean": clean,
        "attacks": attacks,
    }


@pytest.fixture
def done(monkeypatch, request):
    """Replaces work by invented results; returns the names of jobs done, in order."""
    names = []

    def do(job, jobs, out, data_dir=None):
        assert job.needs is None or finished(out, jobs[job.needs]) is not None
        if do.fails(job):
            raise ArithmeticError(f"no luck with {job.name}")
        if do.stops(job):
            raise KeyboardInterrupt
        names.append(job.name)
        result = invented(job) if job.row else {}
        write_json(
            folder_of(out, job) / "job.json",
            {"digest": job.digest, "result": result, "versions": {"keras": "3"}},
        )

    do.fails = do.stops = lambda job: False
    monkeypatch.setattr(workers, "do", do)
    if not request.node.name.startswith("test_figures"):  # drawing takes longer than all the rest
        monkeypatch.setattr(runner, "write_figures", lambda results, folder: {})
    return names, do


def test_results_are_tidy_ordered_and_compared_seed_by_seed(done, tmp_path):
    names, _ = done
    results = run_study(described(), tmp_path, jobs=0)
    assert names == list(expand(described()))
    rows = results["rows"]
    assert len(rows) == 3 * (1 + 3 * 2 * 3) * 3  # seeds, models, attacks and clean
    with open(tmp_path / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["accuracy"]) for row in table] == [row["accuracy"] for row in rows]
    first = rows[0]
    assert (first["method"], first["attack"], first["accuracy"]) == ("da", "clean", 0.9)
    assert first["versions"] == "keras 3"
    assert first["digest"] == expand(described())[first["job"]].digest
    assert [row["attack"] for row in rows[:3]] == ["clean", "PGD-4", "FGSM"]
    small = next(r for r in rows if r["variant"] == "atmc + uniform-4" and r["ratio"] == 0.1)
    assert small["paper_bits"] == 400 and small["paper_bytes"] == 50
    assert small["compression"] == pytest.approx(80)
    assert small["epochs"] == 18 and small["dense_epochs"] == 2
    pair = next(
        c
        for c in results["comparisons"]
        if (c["first"], c["second"], c["ratio"], c["attack"]) == ("atmc", "al0", 0.1, "PGD-4")
    )
    assert pair["by_seed"] == pytest.approx({"0": 0.02, "1": 0.04, "2": 0.06})
    assert pair["mean"] == pytest.approx(0.04) and pair["sd"] == pytest.approx(0.02)
    # Student's t for two degrees of freedom at 97.5% is 4.3027.
    assert pair["low"] == pytest.approx(0.04 - 4.3027 * 0.02 / 3**0.5, abs=1e-5)
    pairs = {(c["first"], c["second"]) for c in results["comparisons"]}
    assert ("atmc-4", "nap-4") in pairs and ("atmc-4", "atmc + uniform-4") in pairs
    summary = next(
        s for s in results["summary"] if (s["variant"], s["attack"]) == ("atmc", "PGD-4")
    )
    assert [summary[k] for k in ("seeds", "min", "mean", "max")] == pytest.approx(
        [3, 0.54, 0.56, 0.58]
    )


def test_differences_over_all_ratios_take_each_seed_once(done, tmp_path):
    results = run_study(described(), tmp_path, jobs=0)
    pooled = [c for c in results["comparisons"] if c["ratio"] is None]
    entry = next(c for c in pooled if (c["first"], c["second"]) == ("atmc", "al0"))
    assert entry["n"] == 3 and entry["attack"] == "clean" and entry["mean"] == 0.0
    entry = next(c for c in pooled if (c["second"], c["attack"]) == ("al0", "PGD-4"))
    assert entry["by_seed"] == pytest.approx({"0": 0.02, "1": 0.04, "2": 0.06})
    rows = [
        {**dict.fromkeys(("data", "model", "training"), "d"), "attack": "a"}
        | {"variant": name, "ratio": ratio, "seed": seed, "accuracy": accuracy}
        for name, ratio, seed, accuracy in [
            ("x", 0.2, 0, 0.5),
            ("x", 0.1, 0, 0.7),
            ("x", 0.1, 1, 0.9),
            ("y", 0.2, 0, 0.4),
            ("y", 0.1, 0, 0.4),
            ("y", 0.1, 1, 0.4),
        ]
    ]
    found = {c["ratio"]: c["by_seed"] for c in compare(rows, [("x", "y")])}
    assert found[None] == pytest.approx({"0": 0.2})  # seed 1 lacks a ratio
    assert found[0.1] == pytest.approx({"0": 0.3, "1": 0.5})
    assert set(found) == {None, 0.1, 0.2}


def test_tables_hold_means_and_intervals_as_markdown(done, tmp_path):
    results = run_study(described(quantize_afterwards=[], bits=32), tmp_path, jobs=0)
    text = (tmp_path / "tables.md").read_text()
    assert "## Small_cnn on digits, trained under pgd\n" in text
    assert "| al0 | 3 | 52.0 | 51.0 |" in text and "| atmc | 3 | 56.0 | 55.0 |" in text
    assert "| da (dense) | 3 | 60.0 |  |" in text
    # 4.3027 * 2 / sqrt(3) = 4.97 points, at each ratio and over both.
    assert "| PGD-4 | +4.0 ± 5.0 | +4.0 ± 5.0 | +4.0 ± 5.0 |" in text
    assert "### atmc minus al0: small_cnn on digits, trained under pgd\n" in text
    both = accuracies(results["summary"], ["clean", "PGD-4"]).splitlines()
    assert both[0] == "| method | seeds | 0.2 | 0.1 | 0.2 | 0.1 |"
    assert both[2] == "|  |  | **clean** |  | **PGD-4** |  |"
    assert both[-1] == "| atmc | 3 | 90.0 | 90.0 | 56.0 | 55.0 |"
    assert len({line.count("|") for line in text.splitlines() if line.startswith("| PGD")}) == 1
    assert comparisons([c for c in results["comparisons"] if c["n"] == 9]).startswith("| attack")


def test_a_kept_study_fills_the_marks_of_a_document_each_time_anew(done, tmp_path, monkeypatch):
    run_study(described(quantize_afterwards=[], bits=32), tmp_path / "out", jobs=0)
    document = tmp_path / "results.md"
    marks = ("<!-- small: accuracies clean, PGD-4 -->", "<!-- small: atmc minus al0 -->")
    document.write_text(
        f"Before\n\n{marks[0]}\nold\n<!-- end -->\n\n{marks[1]}\n<!-- end -->\nAfter\n"
    )
    (tmp_path / "out" / "figures").mkdir()
    for name in ("shown", "unseen"):
        (tmp_path / "out" / "figures" / f"{name}.png").write_text(name)
    keep_study = importlib.import_module("benchmarks.keep_study")
    document.write_text(document.read_text() + "![](../results/small/figures/shown.png)\n")
    monkeypatch.setattr(keep_study, "DOCUMENTS", [document])
    results = keep_study.keep(tmp_path / "out", tmp_path / "kept" / "small")
    texts = [fill(document.read_text(), "small", lambda what: study_table(results, what))]
    texts.append(fill(texts[0], "small", lambda what: study_table(results, what)))
    assert texts[0] == texts[1] and "old" not in texts[0]
    mixed = [{**entry, "training": "other"} for entry in results["summary"]]
    mixed = {**results, "summary": results["summary"] + mixed}
    with pytest.raises(ValueError, match="results of one kind.*trained under other"):
        study_table(mixed, "accuracies clean")
    of_one = study_table(mixed, "accuracies clean trained under other")
    assert of_one == study_table(results, "accuracies clean")
    with pytest.raises(ValueError, match="There are none"):
        study_table(mixed, "accuracies clean trained under wrm")
    with pytest.raises(ValueError, match="no table 'atmc minus ap'"):
        study_table(results, "atmc minus ap")
    assert texts[0].startswith(f"Before\n\n{marks[0]}\n\n| method |")
    assert "| +4.0 ± 5.0 |\n\n<!-- end -->\nAfter\n" in texts[0]
    kept = tmp_path / "kept" / "small"
    assert [path.name for path in (kept / "figures").iterdir()] == ["shown.png"]
    assert {path.name for path in kept.iterdir()} == {
        "description.yaml",
        "figures",
        "results.json",
        "tables.md",
    }
    again = load_description(kept / "description.yaml")
    assert again == described(quantize_afterwards=[], bits=32)


def test_figures_and_page_stand_for_themselves(done, tmp_path):
    results = run_study(described(name="<small>"), tmp_path, jobs=0)
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert [name.rsplit("-", 1)[1] for name in figures] == [
        "attacks.png",
        "size.png",
        "tradeoff.png",
    ]
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "http" not in page
    assert "<small>" not in page and "&lt;small&gt;" in page
    assert page.count("<tr>") >= len(results["rows"]) + len(results["comparisons"])
    assert "atmc-4 - atmc + uniform-4" in page and "differs" not in page.split("Paired")[0]
    assert page.count("<table>") == page.count("</table>") == 3


def test_a_stopped_study_goes_on_to_the_same_files_without_repeating_work(done, tmp_path):
    names, do = done
    description = described(seeds=[0, 1], ratios=[0.2], test={"FGSM": {"attack": "fgsm"}})
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_study(description, whole, jobs=0)
    todo = list(expand(description))
    del names[:]
    for at in (3, 20):
        do.stops = lambda job, name=todo[at]: job.name == name
        with pytest.raises(KeyboardInterrupt):
            run_study(description, broken, jobs=0)
    do.stops = lambda job: False
    run_study(description, broken, jobs=0)
    assert names == todo
    for name in ("results.json", "results.csv"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    times = json.loads((broken / "times.json").read_text())
    assert times["jobs"][todo[3]]["attempts"] == 2 and times["jobs"][todo[4]]["attempts"] == 1
    assert set(times["measured"]) == {n for n, job in expand(description).items() if job.row}
    del names[:]
    run_study(dataclasses.replace(description, seeds=(0, 1, 3)), broken, jobs=0)
    assert len(names) == len(todo) / 2 and all("-s3-" in name for name in names)


def test_results_of_an_earlier_run_are_taken_over_without_its_models(done, tmp_path):
    names, _ = done
    changes = {"ratios": [0.2, 0.1], "chain": True, "bits": [32], "quantize_afterwards": []}
    earlier = described(seeds=[0], methods=["al0"], **changes)
    run_study(earlier, tmp_path / "earlier", jobs=0)
    known = [tmp_path / "earlier" / "results.json"]
    renamed = [{"method": "al0", "name": "l0"}, "atmc"]
    longer = described(seeds=[0, 1], methods=renamed, **changes)
    whole = run_study(longer, tmp_path / "whole", jobs=0)
    del names[:]
    joined = run_study(longer, tmp_path / "joined", jobs=0, known=known)
    assert joined == whole  # rows, order, names, differences; nothing is called undone
    jobs = expand(longer)
    l0 = [n for n, job in jobs.items() if job.row.get("method") == "l0" and job.row["seed"] == 0]
    dense = next(n for n, job in jobs.items() if job.row.get("method") == "da")
    on_the_way = {job.name for job in trained(jobs) if "-s0-l0" in job.name}
    assert len(l0) == len(on_the_way) == 2
    assert set(names).isdisjoint({dense, *l0, *on_the_way})
    assert any("-s0-dense" in name for name in names)  # ATMC of seed 0 starts there
    del names[:]
    run_study(earlier, tmp_path / "nothing", jobs=0, known=known)
    assert names == []
    with pytest.raises(ValueError, match="nothing that this study measures"):
        run_study(described(seeds=[7]), tmp_path / "other", jobs=0, known=known)
    with pytest.raises(FileNotFoundError, match="no file"):
        run_study(longer, tmp_path / "other", jobs=0, known=[tmp_path / "results.json"])
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a study's results.json"):
        run_study(longer, tmp_path / "other", jobs=0, known=[tmp_path / "results.json"])
    assert not (tmp_path / "other").exists()


# mnist_best, and AP and NAP of some others, were kept before settings that change their jobs.
KEPT = (
    "cifar10_tuned mnist_afterwards mnist_bits mnist_close mnist_first_steps mnist_long mnist_ranks"
)


@pytest.mark.parametrize("name", KEPT.split())
def test_what_is_kept_of_a_study_are_the_jobs_of_its_description(name):
    rows = json.loads((ROOT / "benchmarks" / "results" / name / "results.json").read_text())["rows"]
    jobs = expand(load_description(ROOT / "benchmarks" / "studies" / f"{name}.yaml"))
    assert rows and {row["job"] for row in rows} <= set(jobs)
    assert {row["digest"] for row in rows} <= {job.digest for job in jobs.values()}


def test_a_failure_is_recorded_what_needs_it_is_left_out_and_the_rest_goes_on(done, tmp_path):
    names, do = done
    todo = expand(described(seeds=[0]))
    victim = next(job for job in trained(todo) if job.stages[-1].name == "l0")
    do.fails = lambda job: job.name == victim.name
    with pytest.raises(StudyError, match="no luck with"):
        run_study(described(seeds=[0]), tmp_path, jobs=0)
    results = json.loads((tmp_path / "results.json").read_text())
    failures = {entry["job"]: entry["error"] for entry in results["failures"]}
    assert len(failures) == 1 + 2 + 1 + 3  # two more phases, a codebook, and what is measured
    assert failures[victim.name] == f"ArithmeticError: no luck with {victim.name}"
    assert sum("which failed" in error for error in failures.values()) == 6
    assert set(names) | set(failures) == set(todo)
    assert "Traceback" in (folder_of(tmp_path, victim) / "error.txt").read_text()
    assert {row["ratio"] for row in results["rows"] if row["method"] == "al0"} == {0.1}
    assert "jobs are not done" in (tmp_path / "page.html").read_text()
    do.fails = lambda job: False
    mended = run_study(described(seeds=[0]), tmp_path, jobs=0)
    assert mended["failures"] == [] and "error.txt" not in os.listdir(folder_of(tmp_path, victim))


def test_a_report_is_made_of_what_is_done_and_one_folder_runs_one_study(done, tmp_path):
    names, _ = done
    results = run_study(described(), tmp_path, report_only=True)
    assert results["rows"] == [] and names == []
    assert len(results["failures"]) == len(expand(described()))
    with workers.exclusive(tmp_path):
        with pytest.raises(RuntimeError, match="Another study runs"):
            run_study(described(), tmp_path, jobs=0)


def test_the_command_shows_a_table_and_fails_where_a_job_did(done, tmp_path, capsys):
    _, do = done
    path = tmp_path / "mine.yaml"
    path.write_text("methods: [al0]\nseeds: 0\nratios: 0.1\nbits: 32\n")
    arguments = ["study", str(path), f"--out={tmp_path / 'out'}", "--jobs=0"]
    do.fails = lambda job: bool(job.row)
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert "no luck" in printed.err and "failed: digits-small_cnn-s0-da" in printed.out
    do.fails = lambda job: False
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert "4 of 6 jobs were done before" in printed.out and "page.html" in printed.out
    assert "al0" in printed.out and "90.00%" in printed.out


# --- comparisons ----------------------------------------------------------------------------------


def test_the_interval_of_paired_differences_is_that_of_a_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.6, 0.1, 5), rng.normal(0.5, 0.1, 5)
    found = paired_difference(first, second)
    oracle = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert [found["low"], found["high"]] == pytest.approx([oracle.low, oracle.high])
    assert found["n"] == 5 and found["mean"] == pytest.approx((first - second).mean())
    alone = paired_difference([0.3], [0.1])
    assert alone["mean"] == pytest.approx(0.2) and alone["low"] is None is alone["sd"]


def test_only_seeds_of_both_are_compared():
    same = {"data": "d", "model": "m", "training": "t", "ratio": 0.1, "attack": "a"}
    rows = [
        {**same, "variant": name, "seed": seed, "accuracy": accuracy}
        for name, seed, accuracy in (("x", 0, 0.5), ("x", 1, 0.6), ("y", 1, 0.4), ("y", 2, 0.9))
    ]
    (found,) = compare(rows, [("x", "y"), ("y", "z")])
    assert found["by_seed"] == pytest.approx({"1": 0.2}) and found["n"] == 1


# --- real work ------------------------------------------------------------------------------------

REAL = {
    "methods": [{"method": "atmc", "bits": 32}],
    "ratios": 0.3,
    "bits": [32, 3],
    "quantize_afterwards": "zero_kmeans",
    "training": {"fgsm": {"attack": "fgsm"}},
    "test": {"FGSM": {"attack": "fgsm"}},
    "seeds": 0,
    "dense_epochs": 1,
    "epochs": 1,
    "phases": "pruning",
    "limit": 48,
}


def test_a_real_study_trains_quantises_and_measures(tmp_path):
    results = run_study(Description.from_dict(REAL), tmp_path, jobs=0)
    assert results["failures"] == []
    sizes = {row["variant"]: row for row in results["rows"] if row["attack"] == "clean"}
    assert set(sizes) == {"da", "atmc", "atmc + zero_kmeans-3"}
    assert sizes["da"]["paper_ratio"] == 1.0 and sizes["da"]["nonzeros"] == 38160
    assert sizes["atmc"]["nonzeros"] == 11448 and sizes["atmc"]["paper_ratio"] == 0.3
    few = sizes["atmc + zero_kmeans-3"]
    assert few["max_distinct"] <= 8 and few["paper_ratio"] < 0.04 and few["epochs"] == 1
    assert all(row["examples"] == 48 and 0 <= row["accuracy"] <= 1 for row in results["rows"])
    before = (tmp_path / "results.json").read_bytes()
    run_study(Description.from_dict(REAL), tmp_path, jobs=0)
    assert (tmp_path / "results.json").read_bytes() == before


def test_a_worker_that_dies_is_replaced_and_its_job_reported(tmp_path):
    description = dataclasses.replace(Description.from_dict(REAL), data=("no_such_data",))
    job = next(iter(expand(description)))
    task = workers.Task(description, str(tmp_path), None, 1)
    crew = workers.Workers(1, task)
    try:
        crew.give(job)
        os.kill(crew._workers[0][0].pid, signal.SIGKILL)
        (outcome,) = crew.wait()
        assert outcome.job == job and "SIGKILL" in outcome.error
        assert crew.idle == 1
        crew.give(job)
        (outcome,) = crew.wait()
        assert "no_such_data" in outcome.error and "Traceback" in outcome.details
    finally:
        crew.stop()


@pytest.mark.slow
def test_a_study_killed_once_gives_the_same_results_as_an_unbroken_one(tmp_path):
    script = ROOT / "benchmarks" / "study_kill.py"
    command = [sys.executable, script, "--kills=1", "--jobs=1", f"--work={tmp_path}"]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "killed 1 times: results are the same" in outcome.stdout
