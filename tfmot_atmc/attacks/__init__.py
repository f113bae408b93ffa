# SPDX-License-Identifier: Apache-2.0
"""Adversarial attacks on any callable from inputs to logits.

Each attack is called as `attack(model, x, y)`, eagerly or in a graph. To add one, subclass
`Attack`, write `_perturb(problem, seed)`, and list it in `registry.py`.
"""

from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.fgsm import FGSM, RFGSM
from tfmot_atmc.attacks.outputs import cross_entropy, logits_of, looks_like_probabilities
from tfmot_atmc.attacks.pgd import BIM, PGD
from tfmot_atmc.attacks.problem import Problem, fold_in
from tfmot_atmc.attacks.registry import get, serialize

__all__ = [
    "BIM",
    "FGSM",
    "PGD",
    "RFGSM",
    "Attack",
    "Problem",
    "cross_entropy",
    "fold_in",
    "get",
    "logits_of",
    "looks_like_probabilities",
    "serialize",
]
