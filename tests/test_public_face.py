# SPDX-License-Identifier: Apache-2.0
"""What a user sees first: the names of the package, its help, and how soon they are there."""

import os
import subprocess
import sys
import warnings

import public_api
import pytest

import tfmot_atmc as atmc
from tfmot_atmc import cli
from tfmot_atmc.cli import declared, flags
from tfmot_atmc.compression.deploy import OBJECTIVES
from tfmot_atmc.compression.quantization import WAYS
from tfmot_atmc.export import VALUE_MODES
from tfmot_atmc.export.c.sizes import CPUS
from tfmot_atmc.recipes import PRESETS
from tfmot_atmc.recipes.settings import CompressionSettings


def _run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
    )


def test_public_names_and_signatures_are_those_of_the_kept_list():
    kept = public_api.GOLDEN.read_text().splitlines()
    assert list(public_api.lines()) == kept, "changed on purpose? `make api` renews the list"
    assert len(kept) == len(set(kept))


def test_tab_shows_public_names_only():
    shown = set(dir(atmc))
    assert shown >= {"compress", "evaluate_robustness", "export_tflite", "methods", "attacks"}
    assert shown.isdisjoint({"api", "cli", "compression", "sys", "study", "utils", "version"})
    for module in (atmc.attacks, atmc.callbacks, atmc.export, atmc.methods, atmc.objectives):
        assert dir(module) == sorted(module.__all__)
        assert not [name for name in dir(module) if name.startswith("_") or name == "annotations"]
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        atmc.compres  # noqa: B018


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["study", "-h"], []])
def test_help_loads_no_tensorflow(arguments):
    code = (
        "import sys; sys.argv = ['bin/atmc', *sys.argv[1:]]\n"
        "from tfmot_atmc.cli import main\n"
        "main()\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'scipy', 'sklearn', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = _run("-c", code, *arguments)
    assert done.stdout.startswith("Usage: atmc"), done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_a_command_prints_none_of_tensorflows_own_lines(tmp_path):
    done = _run("-m", "tfmot_atmc", "inspect", str(tmp_path / "a.keras"), TF_CPP_MIN_LOG_LEVEL="0")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("atmc: error: There is no file")
    loud = _run("-m", "tfmot_atmc", "inspect", "a.keras", "--debug", TF_CPP_MIN_LOG_LEVEL="0")
    assert "Traceback" in loud.stderr and loud.stderr.count("\n") > 5


def test_importing_the_package_is_enough_to_load_a_compressed_model(tmp_path):
    model = atmc.compress(atmc.models.small_cnn(), "atmc", ratio=0.1, bits=4)
    model.save(tmp_path / "small.keras")
    code = (
        "import sys, tfmot_atmc, keras\n"
        "model = keras.saving.load_model(sys.argv[1])\n"
        "print(type(model).__name__, type(model.method).__name__)"
    )
    done = _run("-c", code, str(tmp_path / "small.keras"))
    assert done.stdout.split() == ["CompressedModel", "ATMC"], done.stderr


def test_flags_of_compress_are_the_fields_of_the_settings():
    import dataclasses

    from absl import flags as absl_flags

    fields = dataclasses.fields(CompressionSettings)
    found = declared.fields("recipes/settings.py", "CompressionSettings")
    assert [(f.name, f.default) for f in found] == [(f.name, f.default) for f in fields]
    values = absl_flags.FlagValues()
    flags.compress(values)
    assert {f.name for f in fields} == set(values) - {"threads"}
    values(["atmc", "--ratio=1/8", "--bits=4", "--max_bytes=24KB", "--objective=half"])
    assert (values.ratio, values.bits, values.max_bytes) == (0.125, 4, "24KB")
    assert values["preset"].parser.enum_values == list(PRESETS)
    with pytest.raises(absl_flags.Error, match="twice"):
        values(["atmc", "--objective=twice"])


def test_choices_of_flags_are_those_of_the_library():
    assert flags._OPTIMIZE == list(OBJECTIVES)
    assert flags._VALUES == list(VALUE_MODES)
    assert sorted(flags._CPUS) == sorted(CPUS)
    assert flags._WAYS == list(WAYS)


def test_a_field_without_description_is_no_flag(tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text('class Odd:\n    """Odd."""\n    width: int = 3\n')
    monkeypatch.setattr(declared.resources, "files", lambda package: tmp_path)
    with pytest.raises(LookupError, match="width has no entry"):
        declared.fields("odd.py", "Odd")
    with pytest.raises(LookupError, match="no class Even"):
        declared.fields("odd.py", "Even")


@pytest.mark.parametrize("name", ["bits", "steps", "epochs", "batch_size", "limit"])
def test_settings_refuse_numbers_below_one(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1. Received 0"):
        CompressionSettings(**{name: 0}).resolved()


def test_an_attack_by_name_takes_its_arguments_and_leaves_the_methods():
    small = atmc.compress(
        atmc.models.small_cnn(), attack="pgd", epsilon=8 / 255, steps=3, ratio=0.1, bits=4
    )
    assert (type(small.attack).__name__, small.attack.steps) == ("PGD", 3)
    assert float(small.attack.epsilon) == 8 / 255
    assert (small.method.ratio, small.method.bits) == (0.1, 4)
    model = atmc.models.small_cnn()
    for wrong, right in (("epsilom", "epsilon"), ("bitz", "bits"), ("ratoi", "ratio")):
        with pytest.raises(TypeError, match=f"no argument `{wrong}`. Did you mean '{right}'"):
            atmc.compress(model, attack="pgd", **{"epsilon": 0.1, wrong: 1})
    with pytest.raises(TypeError, match="beside a method that is made already"):
        atmc.compress(model, atmc.methods.ATMC(ratio=0.1), attack="fgsm", epsilon=0.1, bits=4)
    with pytest.raises(ValueError, match="Unknown attack 'pdg'"):
        atmc.compress(model, attack="pdg", epsilon=0.1)


def test_a_command_shows_users_warnings_in_one_line_and_programmers_not(monkeypatch, capsys):
    class Warns:
        after_interrupt = ""

        def run(self, rest, console):
            warnings.warn("nothing passes", stacklevel=1)
            warnings.warn("old", DeprecationWarning, stacklevel=1)

    monkeypatch.setitem(cli._COMMANDS, "warns", Warns())
    before = warnings.showwarning
    assert cli.main(["warns"]) == 0
    assert capsys.readouterr().err == "Warning: nothing passes\n"
    assert warnings.showwarning is before
