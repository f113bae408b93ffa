# SPDX-License-Identifier: Apache-2.0
"""Studies: what a description expands to, that runs go on, and what the results say."""

import csv
import dataclasses
import importlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tfmot_atmc import cli
from tfmot_atmc.files import write_json
from tfmot_atmc.study import Description, StudyError, load_description, run_study, runner, workers
from tfmot_atmc.study.comparisons import compare, paired_difference
from tfmot_atmc.study.jobs import expand, method_stages
from tfmot_atmc.study.tables import accuracies, comparisons
from tfmot_atmc.study.work import finished, folder_of

ROOT = pathlib.Path(__file__).resolve().parent.parent
STUDIES = sorted((ROOT / "benchmarks" / "studies").glob("*.yaml"))

SMALL = {
    "name": "small",
    "methods": ["nap", "al0", "atmc"],
    "ratios": [0.2, 0.1],
    "bits": [32, 4],
    "quantize_afterwards": "uniform",
    "test": {"PGD-4": {"attack": "pgd", "steps": 4}, "FGSM": {"attack": "fgsm"}},
    "seeds": [0, 1, 2],
    "dense_epochs": 2,
    "epochs": 12,
}


def described(**changes):
    return Description.from_dict({**SMALL, **changes})


def trained(jobs):
    return [job for job in jobs.values() if job.stages]


# --- descriptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_the_project_can_be_expanded(path):
    description = load_description(path)
    assert description.name == path.stem
    rows = [job.row for job in expand(description).values() if job.row]
    assert {row["method"] for row in rows} == {"da", *(m.name for m in description.methods)}
    for entry in description.methods:
        ratios = {row["ratio"] for row in rows if row["method"] == entry.name}
        assert ratios == set(entry.ratios or description.ratios)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0.1}, "Unknown in the description: 'ratio'.*Did you mean 'ratios'"),
        ({"methods": ["atmcc"]}, "Did you mean 'atmc'"),
        ({"methods": ["al0", "al0"]}, "one entry twice"),
        ({"methods": [{"name": "x"}]}, "mapping with `method`"),
        ({"methods": [{"method": "al0", "name": "al0-8"}]}, "look like one with bits"),
        ({"methods": [{"method": "al0", "learning_rate": 0}]}, "factor above 0"),
        ({"seeds": []}, "must not be empty"),
        ({"seeds": [-1]}, "at least 0"),
        ({"epochs": 0}, "at least 1"),
        ({"limit": "many"}, "integer"),
        ({"phases": "some"}, "Known: all, pruning"),
        ({"quantize_afterwards": "best"}, "Known: uniform, zero_kmeans"),
        ({"bits": 32}, "below 32 to quantise"),
        ({"test": ["pgd"]}, "must map names"),
        ({"test": {"PGD": {"steps": 3}}}, "mapping with `attack`"),
        ({"compare": [["atmc"]]}, "pairs"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_with_the_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        described(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratios": [1.5]}, r"\(0, 1\]"),
        ({"test": {"PGD": {"attack": "pgd", "stepps": 3}}}, "'PGD' cannot be made"),
        ({"test": {"PGD": {"attack": "pgdd"}}}, "Unknown attack"),
        ({"methods": [{"method": "al0", "arguments": {"shape": 3}}]}, "does not take"),
        ({"compare": [["atmc", "alr"]]}, "Unknown in compare: 'alr'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_study(described(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_is_read_with_fractions_and_its_own_name(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("ratios: 0.5\ntest: {A: {attack: pgd, epsilon: 51/255, examples: 7}}\n")
    description = load_description(path)
    assert description.name == "mine" and description.ratios == (0.5,)
    attack = description.test[0]
    assert attack.make("digits").epsilon == pytest.approx(0.2) and attack.examples == 7
    assert Description.from_dict(description.to_dict()) == description
    path.write_text("a: [")
    with pytest.raises(ValueError, match="not YAML"):
        load_description(path)
    with pytest.raises(FileNotFoundError):
        load_description(tmp_path / "none.yaml")


# --- jobs -----------------------------------------------------------------------------------------


def test_common_stages_are_one_job_and_nap_has_a_clean_start_of_its_own():
    jobs = expand(described(seeds=[0]))
    names = [[stage.name for stage in job.stages] for job in trained(jobs)]
    assert len([chain for chain in names if chain == ["dense"]]) == 2  # adversarial and clean
    starts = {job.needs for job in trained(jobs) if len(job.stages) == 2}
    clean = {name for name in starts if not jobs[name].stages[0].attack_factor}
    assert len(starts) == 2 and len(clean) == 1
    for job in trained(jobs):
        if "nap" in [stage.name for stage in job.stages]:
            assert all(stage.attack_factor == 0 for stage in job.stages)
    # For each ratio: pruned, hardened, polished, and a codebook that goes on from there.
    assert len(trained(jobs)) == 2 + 3 * 2 * 4
    codebook = next(job for job in trained(jobs) if job.stages[-1].name == "atmc4")
    assert [stage.name for stage in jobs[codebook.needs].stages] == [
        "dense",
        "atmc32",
        "hardened",
        "polished",
    ]
    measured = [job for job in jobs.values() if job.row]
    assert len(measured) == 1 + 3 * 2 * 3  # dense; 32 bits, 4 bits, quantised to 4 afterwards
    afterwards = next(j for j in measured if j.row["quantized"] and j.row["method"] == "atmc")
    assert jobs[afterwards.needs].stages[-1].name == "polished"
    order = list(jobs)
    assert all(
        job.needs is None or order.index(job.needs) < order.index(n) for n, job in jobs.items()
    )


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize("bits", [32, 4])
def test_all_methods_have_equal_epochs_rates_and_attacks(preset, bits):
    description = described(preset=preset, methods=["nap", "ap", "al0", "alr", "atmc"])
    totals = set()
    for entry in description.methods:
        stages = method_stages(entry, 0.1, bits, description)
        assert getattr(stages[-1].method, "bits", 32) in (bits, None if bits == 32 else bits)
        totals.add(sum(stage.epochs for stage in stages))
        if preset == "default":
            shape = [(s.epochs, s.learning_rate, s.clipnorm, s.batch_size) for s in stages]
            assert shape[:3] == [(12, 0.15, 5.0, 64), (3, 0.05, 5.0, 64), (3, 0.02, 5.0, 64)]
            if entry.method != "nap":
                assert [s.attack_factor for s in stages[:3]] == [1, 3, 3]
    assert len(totals) == 1


def test_a_chain_goes_from_ratio_to_ratio_and_codebooks_do_not_lie_on_it():
    jobs = expand(described(seeds=[0], ratios=[0.1, 0.3, 0.2], phases="pruning", chain=True))
    measured = {
        (job.row["method"], job.row["ratio"], job.row["bits"]): job
        for job in jobs.values()
        if job.row and not job.row["quantized"]
    }
    last = measured["al0", 0.1, 32]
    names = [stage.name for stage in jobs[last.needs].stages]
    assert names == ["dense", "l0-0.3", "l0-0.2", "l0-0.1"]
    assert [stage.method.get_config().get("ratio") for stage in jobs[last.needs].stages] == [
        None,
        0.3,
        0.2,
        0.1,
    ]
    assert (last.row["epochs"], measured["al0", 0.3, 32].row["epochs"]) == (36, 12)
    begins = [stage.method.schedule.initial_ratio for stage in jobs[last.needs].stages[1:]]
    assert begins == [0.25, 0.3, 0.2]  # from the dense start the stage's own, then from the last
    small = jobs[measured["atmc", 0.1, 4].needs]
    names = [stage.name for stage in small.stages]
    assert names == ["dense", "atmc32-0.3", "atmc32-0.2", "atmc32-0.1", "atmc4-0.1"]
    assert measured["atmc", 0.1, 32].needs == small.needs
    # Each ratio is trained once, and a chain of one ratio differs from no chain in names alone.
    assert len(trained(jobs)) == 2 + 3 * 3 * 2
    one = [described(seeds=[0], ratios=[0.1], chain=chain) for chain in (False, True)]
    costs = [sorted(job.cost for job in trained(expand(description))) for description in one]
    assert costs[0] == costs[1]


def test_entries_of_methods_change_their_own_stages_only():
    methods = ["al0", {"method": "al0", "name": "slow", "learning_rate": 0.5, "ratios": 0.1}]
    methods.append({"method": "atmc", "arguments": {"schedule": "constant"}, "bits": 4})
    description = described(methods=methods, quantize_afterwards=[], batch_size=32)
    al0, slow, atmc = (method_stages(entry, 0.1, 4, description) for entry in description.methods)
    assert [s.learning_rate for s in slow] == [s.learning_rate / 2 for s in al0]
    assert type(atmc[0].method.schedule).__name__ == "ConstantBudget"
    assert {s.batch_size for s in al0} == {32}
    rows = [job.row for job in expand(description).values() if job.row]
    assert {row["ratio"] for row in rows if row["method"] == "slow"} == {0.1}
    assert {row["bits"] for row in rows if row["method"] == "atmc"} == {4}


def test_a_job_is_named_by_all_it_depends_on_and_nothing_else():
    first = expand(described())
    again = expand(described(name="other", ratios=[0.1, 0.2], seeds=[2, 1, 0]))
    assert set(first) == set(again)
    longer = expand(described(epochs=13))
    assert {len(job.stages) for name, job in longer.items() if name in first} == {0, 1}
    more = expand(described(test={**SMALL["test"], "PGD-2": {"attack": "pgd", "steps": 2}}))
    assert {job.name for job in trained(more)} == {job.name for job in trained(first)}


# --- running, with invented results ---------------------------------------------------------------


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


def test_a_kept_study_fills_the_marked_places_of_a_document_each_time_anew(done, tmp_path):
    run_study(described(quantize_afterwards=[], bits=32), tmp_path / "out", jobs=0)
    document = tmp_path / "results.md"
    marks = ("<!-- small: accuracies clean, PGD-4 -->", "<!-- small: atmc minus al0 -->")
    document.write_text(
        f"Before\n\n{marks[0]}\nold\n<!-- end -->\n\n{marks[1]}\n<!-- end -->\nAfter\n"
    )
    (tmp_path / "out" / "figures").mkdir()
    keep_study = importlib.import_module("benchmarks.keep_study")
    results = keep_study.keep(tmp_path / "out", tmp_path / "kept" / "small")
    texts = [keep_study.write_tables(document.read_text(), "small", results)]
    texts.append(keep_study.write_tables(texts[0], "small", results))
    assert texts[0] == texts[1] and "old" not in texts[0]
    mixed = [{**entry, "training": "other"} for entry in results["summary"]]
    with pytest.raises(ValueError, match="a study of one kind.*trained under other"):
        keep_study.table({**results, "summary": results["summary"] + mixed}, "accuracies clean")
    with pytest.raises(ValueError, match="no table 'atmc minus ap'"):
        keep_study.table(results, "atmc minus ap")
    assert texts[0].startswith(f"Before\n\n{marks[0]}\n\n| method |")
    assert texts[0].endswith("| +4.0 ± 5.0 |\n\n<!-- end -->\nAfter\n")
    kept = tmp_path / "kept" / "small"
    assert {path.name for path in kept.iterdir()} == {
        "description.yaml",
        "figures",
        "page.html",
        "results.csv",
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
