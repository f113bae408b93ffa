# SPDX-License-Identifier: Apache-2.0
"""Studies: what a description expands to."""

import dataclasses
import pathlib

import keras
import pytest

from tfmot_atmc import attacks
from tfmot_atmc.study import Description, load_description, run_study
from tfmot_atmc.study.jobs import expand, method_stages

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
        ({"methods": [{"method": "al0", "optimizer": "lion"}]}, "one of .'sgd', 'adam'"),
        ({"seeds": []}, "must not be empty"),
        ({"seeds": [-1]}, "at least 0"),
        ({"epochs": 0}, "at least 1"),
        ({"limit": "many"}, "integer"),
        ({"clean_weight": 1.5}, r"lie in \[0, 1\]"),
        ({"clean_weight": 0.1, "objective": "trades"}, "no meaning with"),
        ({"phases": "some"}, "Known: all, pruning"),
        ({"quantize_afterwards": "best"}, "Known: uniform, zero_kmeans"),
        ({"bits": 32}, "below 32 to quantise"),
        ({"test": ["pgd"]}, "must map names"),
        ({"test": {"PGD": {"steps": 3}}}, "mapping with `attack`"),
        ({"compare": [["atmc"]]}, "pairs"),
        ({"training": {"p": {"attack": "pgd", "examples": 5}}}, "training takes all"),
        ({"methods": [{"method": "al0", "attack": "pgd"}]}, "mapping with `attack`"),
        ({"finish": True, "preset": "paper"}, "`preset: default` only"),
        ({"test": {"A": {"attack": "atta"}}}, "measures nothing"),
        (
            {"methods": ["al0", {"method": "al0", "name": "b", "after": "al0"}]},
            "needs `chain: true`",
        ),
        ({"chain": True, "methods": [{"method": "al0", "after": "al0"}]}, "Unknown in `after`"),
        (
            {"chain": True, "methods": ["al0", {"method": "ap", "after": "al0", "ratios": 0.1}]},
            "goes on from 'al0' at 0.1, so its `ratios` must be below that",
        ),
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
        ({"methods": [{"method": "nap", "attack": {"attack": "pgd"}}]}, "on clean inputs"),
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


def test_an_entry_goes_on_from_where_the_chain_of_another_ended():
    layers = {
        "method": "al0",
        "name": "layers",
        "ratios": 0.2,
        "arguments": {"layer_exponent": 0.1},
    }
    first = {"method": "al0", "name": "one", "after": "layers", "ratios": 0.1}
    then = {"method": "atmc", "after": "one", "ratios": 0.05, "bits": [4, 32]}
    jobs = expand(
        described(
            chain=True,
            methods=[layers, first, then],
            phases="pruning",
            seeds=0,
            quantize_afterwards=[],
        )
    )
    rows = {(job.row["method"], job.row["bits"]): job for job in jobs.values() if job.row}
    ends = {key: [stage.name for stage in jobs[job.needs].stages] for key, job in rows.items()}
    assert ends["layers", 32] == ["dense", "l0-0.2"]
    assert ends["one", 32] == ["dense", "l0-0.2", "l0-0.1"]
    assert ends["atmc", 32] == ["dense", "l0-0.2", "l0-0.1", "atmc32-0.05"]
    assert ends["atmc", 4] == [*ends["atmc", 32], "atmc4-0.05"]
    assert rows["atmc", 32].row["epochs"] == 36
    stages = jobs[rows["atmc", 32].needs].stages[1:]
    assert [stage.method.schedule.initial_ratio for stage in stages] == [0.25, 0.2, 0.1]
    assert [stage.method.layer_exponent for stage in stages] == [0.1, None, None]
    assert len(trained(jobs)) == 1 + 3 * 2  # the dense start; a link and a codebook for each


def test_finished_models_are_trained_as_long_as_those_with_codebooks_and_off_the_chain():
    description = described(finish=True, chain=True, seeds=[0])
    for entry in description.methods:
        (*one, last), (*other, codebook) = (
            method_stages(entry, 0.1, bits, description) for bits in (32, 4)
        )
        assert [stage.name for stage in one] == [stage.name for stage in other]
        assert last.name == "finished" and codebook.method.bits == 4
        assert last.objective.clean_weight == codebook.objective.clean_weight
        same = {"name": "", "method": None, "objective": None}
        assert dataclasses.replace(last, **same) == dataclasses.replace(codebook, **same)
        assert last.method.bits in (32, None)
        assert type(last.method) is type(codebook.method)
    jobs = expand(description)
    before = expand(described(chain=True, seeds=[0]))
    new = [job.stages[-1].name for job in trained(jobs) if job.name not in before]
    assert sorted(new) == sorted(f"finished-{ratio:g}" for ratio in (0.2, 0.1) for _ in range(3))
    epochs = {job.row["epochs"] for job in jobs.values() if job.row and job.row["ratio"] == 0.1}
    assert epochs == {12 + 3 + 3 + 12 + 3 + 3 + 1}


def test_entries_of_methods_change_their_own_stages_only():
    methods = ["al0", {"method": "al0", "name": "slow", "learning_rate": 0.5, "ratios": 0.1}]
    methods.append({"method": "atmc", "arguments": {"schedule": "constant"}, "bits": 4})
    methods.append({"method": "al0", "name": "adam", "optimizer": "adam", "ratios": 0.1})
    description = described(methods=methods, quantize_afterwards=[], batch_size=32)
    al0, slow, atmc, adam = (
        method_stages(entry, 0.1, 4, description) for entry in description.methods
    )
    assert [s.learning_rate for s in slow] == [s.learning_rate / 2 for s in al0]
    assert {s.optimizer for s in al0 + slow + atmc} == {"sgd"}
    assert {s.optimizer for s in adam} == {"adam"} and description.methods[3].optimizer == "adam"
    assert [s.learning_rate for s in adam] == pytest.approx([s.learning_rate / 50 for s in al0])
    assert adam[0].with_optimizer("sgd").learning_rate == pytest.approx(al0[0].learning_rate)
    assert al0[0].with_optimizer("sgd") == al0[0]
    assert isinstance(adam[0].make_optimizer(10), keras.optimizers.Adam)
    assert type(atmc[0].method.schedule).__name__ == "ConstantBudget"
    assert {s.batch_size for s in al0} == {32}
    rows = [job.row for job in expand(description).values() if job.row]
    assert {row["ratio"] for row in rows if row["method"] == "slow"} == {0.1}
    assert {row["bits"] for row in rows if row["method"] == "atmc"} == {4}


def test_a_share_of_clean_inputs_replaces_that_of_stages_with_one():
    def weights(**changes):
        description = described(**changes)
        stages = (method_stages(entry, 0.1, 4, description) for entry in description.methods)
        return [[stage.objective.clean_weight for stage in several] for several in stages]

    assert weights() == [[1.0] * 4, [0.2, 0.3, 0.4, 0.4], [0.2, 0.3, 0.4, 0.4]]
    assert weights(clean_weight=0.0) == [[1.0] * 4, [0.0] * 4, [0.0] * 4]
    own, none = (expand(described(clean_weight=weight)) for weight in (None, 0.0))
    untouched = {
        name
        for name, job in own.items()
        if job.stages and all(s.objective is None or s.attack_factor == 0 for s in job.stages)
    }
    assert untouched == {job.name for job in trained(own)} & set(none)
    assert len(untouched) == 3 * (2 + 2 * 4)  # for each seed two dense starts, and NAP's stages


def test_a_job_is_named_by_all_it_depends_on_and_nothing_else():
    first = expand(described())
    again = expand(described(name="other", ratios=[0.1, 0.2], seeds=[2, 1, 0]))
    assert set(first) == set(again)
    longer = expand(described(epochs=13))
    assert {len(job.stages) for name, job in longer.items() if name in first} == {0, 1}
    more = expand(described(test={**SMALL["test"], "PGD-2": {"attack": "pgd", "steps": 2}}))
    assert {job.name for job in trained(more)} == {job.name for job in trained(first)}


def test_training_with_carried_perturbations_needs_no_sizes_and_takes_its_steps():
    jobs = trained(expand(described(training={"atta": {"attack": "atta", "epsilon": 0.1}})))
    attack = attacks.get(jobs[0].configuration["attack"])
    assert isinstance(attack, attacks.ATTA) and attack.num_examples is None
    factors = {stage.attack_factor: stage for job in jobs for stage in job.stages}
    assert set(factors) == {0, 1, 3} and factors[0].make_attack(attack) is None  # 0: NAP's
    assert [factors[n].make_attack(attack).steps for n in (1, 3)] == [1, 3]


def test_what_starts_from_a_robust_model_begins_to_carry_by_three_steps_and_says_so():
    def stages(name, **arguments):
        attack = {name: {"attack": name, "epsilon": 0.1, **arguments}}
        jobs = trained(expand(described(training=attack, methods=["al0"], seeds=[0])))
        run = attacks.get(jobs[0].configuration["attack"])
        last = max(jobs, key=lambda job: len(job.stages))
        made = [stage.make_attack(run) for stage in last.stages]
        return [getattr(a, "first_steps", None) for a in made], last.configuration["stages"]

    first, plain = stages("atta")
    assert first == [None, 3, 3, 3, 3] and "first_steps" not in plain[0]
    assert [stage["first_steps"] for stage in plain[1:]] == [3, 3, 3, 3]
    assert stages("atta", first_steps=1)[0] == [1, 1, 1, 1, 1]  # the attack's own wins
    assert all("first_steps" not in stage for stage in stages("pgd")[1])


def test_a_method_may_train_under_an_attack_of_its_own_after_a_common_start():
    pgd = {"attack": "pgd", "steps": 5}
    methods = ["al0", {"method": "al0", "name": "other", "attack": pgd, "after": "al0"}]
    methods[1]["ratios"] = 0.05
    description = described(
        methods=methods,
        training={"atta": {"attack": "atta", "epsilon": "51/255"}},
        ratios=[0.1],
        bits=[32],
        quantize_afterwards=[],
        chain=True,
        data=["digits"],
        seeds=[0],
    )
    assert Description.from_dict(description.to_dict()) == description
    last = max(trained(expand(description)), key=lambda job: len(job.stages))
    run = attacks.get(last.configuration["attack"])
    made = [stage.make_attack(run) for stage in last.stages]
    assert [type(attack).__name__ for attack in made] == ["ATTA"] * 4 + ["PGD"] * 3
    assert [attack.steps for attack in made[4:]] == [5, 15, 15]
    assert made[4].epsilon == description.methods[1].attack.make("digits").epsilon
    plain = last.configuration["stages"]
    assert "attack" not in plain[3] and plain[4]["attack"]["config"]["steps"] == 5
    assert "first_steps" in plain[3] and "first_steps" not in plain[4]


def test_ranks_that_are_given_are_part_of_what_a_job_depends_on():
    def last(**arguments):
        alr = {"method": "alr", "ratios": 0.5, "arguments": {"relative": True, **arguments}}
        jobs = trained(expand(described(methods=[alr], bits=[32], quantize_afterwards=[])))
        return next(job for job in jobs if job.stages[-1].name == "alr")

    chosen, given = last(), last(ranks=[2, 1])
    assert "ranks" not in chosen.configuration["stages"][-1]["method"]["config"]
    assert given.stages[-1].method.ranks == [2, 1] and given.digest != chosen.digest
