# SPDX-License-Identifier: Apache-2.0
"""One registry for all kinds: by being defined a class is known, and no other takes its name."""

import keras
import numpy as np
import pytest

from tfmot_atmc import attacks, compress, constraints, kernels, methods, objectives
from tfmot_atmc.utils.registry import Registry, parameters


def define(name, base, module="users.file", qualname=None):
    """Defines a class as a module of the user's does."""
    namespace = {"__module__": module, "__qualname__": qualname or name, "__doc__": "A class."}
    return type(name, (base,), namespace)


@pytest.fixture(autouse=True)
def forget():
    """Forgets what a test defines."""
    bases = (
        *(methods.Method, attacks.Attack, constraints.Constraint, kernels.Kernel),
        *(objectives.Objective, constraints.BudgetSchedule),
    )
    before = [dict(base.registry._classes) for base in bases]
    yield
    for base, classes in zip(bases, before, strict=True):
        base.registry._classes = classes


def test_every_kind_is_known_by_name():
    assert {"atmc", "al0", "ap", "nap", "alr", "da"} <= set(methods.names())
    assert methods.class_of("ATMC") is methods.ATMC and methods.name_of(methods.NAP) == "nap"
    assert {"pgd", "apgdt", "wrm", "autoattack"} <= set(attacks.names())
    assert attacks.class_of("PGD") is attacks.PGD
    assert constraints.get_schedule("cubic", end=0.4).end == 0.4
    assert objectives.get_objective("half").clean_weight == 0.5
    assert objectives.get_objective("trades", beta=2.0).beta == 2.0
    assert {"plainkernel", "factorizedkernel"} <= set(kernels.Kernel.registry.names())
    assert {"globalsparsity", "codebook"} <= set(constraints.Constraint.registry.names())
    assert "codebookmethod" not in methods.names() and "method" not in methods.names()


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("DA", methods.Method),
        ("PGD", attacks.Attack),
        ("Codebook", constraints.Constraint),
        ("PlainKernel", kernels.Kernel),
        ("TradesLoss", objectives.Objective),
        ("CubicBudget", constraints.BudgetSchedule),
        ("Codebook", methods.Method),  # another kind, but the same name in saved models
    ],
)
def test_a_name_that_is_taken_is_refused_and_both_classes_are_named(name, base):
    with pytest.raises(ValueError, match=rf"users\.file\.{name} cannot.* tfmot_atmc\..*\.{name}"):
        define(name, base)
    assert methods.get("da").__class__ is methods.DA
    assert attacks.class_of("pgd") is attacks.PGD
    restored = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(constraints.Codebook(4))
    )
    assert type(restored) is constraints.Codebook


def test_a_class_that_is_defined_again_takes_its_own_place():
    first = define("Mine", methods.Method)
    second = define("Mine", methods.Method)
    assert first is not second and methods.class_of("mine") is second
    assert methods.name_of(first) == "mine"
    with pytest.raises(ValueError, match="users.other.Mine cannot replace users.file.Mine"):
        define("Mine", methods.Method, module="users.other")


def test_classes_within_functions_come_and_go():
    define("Passing", attacks.Attack, qualname="test_one.<locals>.Passing")
    other = define("Passing", attacks.Attack, qualname="test_two.<locals>.Passing")
    assert attacks.class_of("passing") is other
    kept = define("Passing", attacks.Attack)
    with pytest.raises(ValueError, match="is taken"):
        define("Passing", attacks.Attack, qualname="test_two.<locals>.Passing")
    assert attacks.class_of("passing") is kept


@pytest.mark.parametrize(
    ("get", "nearest"),
    [
        (lambda: methods.get("atmc", raito=0.1), "'ratio'"),
        (lambda: methods.ATMC(ratio=0.1).but(bit=8), "'bits'"),
        (lambda: methods.ATMC.from_config({"ratio": 0.1, "schedul": "cubic"}), "'schedule'"),
        (lambda: attacks.get("pgd", epsilon=0.1, step=3), "'steps'"),
        (lambda: attacks.get({"class_name": "PGD", "config": {"epsilom": 0.1}}), "'epsilon'"),
        (lambda: constraints.get_schedule("cubic", ende=0.4), "'end'"),
        (lambda: objectives.get_objective("trades", beat=1.0), "'beta'"),
    ],
)
def test_unknown_arguments_are_refused_with_the_nearest_right_name(get, nearest):
    with pytest.raises(TypeError, match=f"has no argument .* Did you mean {nearest}"):
        get()


@pytest.mark.parametrize(
    ("get", "nearest"),
    [
        (lambda: methods.get("atcm"), "'atmc'"),
        (lambda: attacks.get("pdg"), "'pgd'"),
        (lambda: constraints.get_schedule("cubics"), "'cubic'"),
        (lambda: objectives.get_objective("haf"), "'half'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest_right_name(get, nearest):
    with pytest.raises(ValueError, match=f"Unknown .* Known: .* Did you mean {nearest}"):
        get()


def model():
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="wide")])


def test_arguments_beside_an_instance_are_refused():
    fgsm = attacks.FGSM(epsilon=0.1)
    with pytest.raises(TypeError, match="`atack`.* Did you mean 'attack'"):
        compress(model(), methods.ATMC(ratio=0.1), atack=fgsm, bits=4)
    with pytest.raises(TypeError, match=r"\['bits'\] stand beside a method"):
        compress(model(), methods.ATMC(ratio=0.1), bits=4)
    with pytest.raises(TypeError, match="`atack`.* Did you mean 'attack'"):
        compress(model(), "atmc", ratio=0.5, atack=fgsm)
    with pytest.raises(TypeError, match="`raito`.* Did you mean 'ratio'"):
        compress(model(), raito=0.5)
    small = compress(model(), "atmc", ratio=0.5, attack="pgd", epsilon=0.1, steps=3)
    assert small.method.ratio == 0.5 and small.attack.steps == 3
    with pytest.raises(TypeError, match="`step`.* Did you mean 'steps'"):
        compress(model(), "atmc", ratio=0.5, attack="pgd", epsilon=0.1, step=3)
    with pytest.raises(TypeError, match="beside"):
        methods.get(keras.saving.serialize_keras_object(methods.DA()), ratio=0.5)


def test_an_attack_that_does_not_describe_itself_is_not_saved():
    class Forgetful(attacks.FGSM):
        def __init__(self, *, twists=2, **kwargs):
            super().__init__(**kwargs)
            self.twists = twists

    assert attacks.serialize(Forgetful(epsilon=0.1))["class_name"] == "Forgetful"
    with pytest.raises(ValueError, match=r"lacks \['twists'\]"):
        attacks.serialize(Forgetful(epsilon=0.1, twists=3))


def test_arguments_are_found_through_the_base_classes():
    assert list(parameters(methods.NAP)) == list(parameters(methods.AP))
    assert not methods.ALR.takes("k") and methods.AL0.takes("k") and not methods.DA.takes("ratio")
    assert "epsilon" not in parameters(attacks.WRM) and "seed" in parameters(attacks.WRM)
    assert methods.ATMC(0.1, bits=4).but(bits=32).bits == 32
    empty = Registry("thing")
    with pytest.raises(ValueError, match="Unknown thing 'a'. Known: "):
        empty.find("a")
    with pytest.raises(ValueError, match="no registered thing"):
        empty.name_of(np.ndarray)
