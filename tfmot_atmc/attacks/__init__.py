# SPDX-License-Identifier: Apache-2.0
"""Adversarial attacks on any callable from inputs to logits.

Each attack is called as `attack(model, x, y)`, eagerly or in a graph. To add one, subclass
`Attack` and write `_perturb(problem, seed)`; it is known by its name from then on.
"""

from tfmot_atmc.attacks.apgd import APGD, APGDT
from tfmot_atmc.attacks.atta import ATTA, Keyed
from tfmot_atmc.attacks.autoattack import AutoAttack
from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.fab import FAB, FABT
from tfmot_atmc.attacks.fgsm import FGSM, RFGSM
from tfmot_atmc.attacks.mifgsm import MIFGSM
from tfmot_atmc.attacks.outputs import cross_entropy, logits_of, looks_like_probabilities
from tfmot_atmc.attacks.pgd import BIM, PGD
from tfmot_atmc.attacks.problem import Problem, fold_in
from tfmot_atmc.attacks.quick import QuickAutoAttack
from tfmot_atmc.attacks.registry import class_of, get, names, serialize
from tfmot_atmc.attacks.square import Square
from tfmot_atmc.attacks.trades import TRADES
from tfmot_atmc.attacks.values import by_column
from tfmot_atmc.attacks.wrm import WRM

__all__ = [
    "APGD",
    "APGDT",
    "ATTA",
    "BIM",
    "FAB",
    "FABT",
    "FGSM",
    "MIFGSM",
    "PGD",
    "RFGSM",
    "TRADES",
    "WRM",
    "Attack",
    "AutoAttack",
    "Keyed",
    "Problem",
    "QuickAutoAttack",
    "Square",
    "by_column",
    "class_of",
    "cross_entropy",
    "fold_in",
    "get",
    "logits_of",
    "looks_like_probabilities",
    "names",
    "serialize",
]


def __dir__() -> list[str]:
    return __all__
