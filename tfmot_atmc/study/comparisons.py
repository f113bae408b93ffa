# SPDX-License-Identifier: Apache-2.0
"""Paired comparisons: what one method has over another, seed by seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from tfmot_atmc import methods
from tfmot_atmc.study.description import Description
from tfmot_atmc.study.jobs import variant

__all__ = ["GROUP", "check_pairs", "compare", "paired_difference", "pairs_of"]

GROUP = ("data", "model", "training")
"""What accuracies must have in common to be compared."""


def paired_difference(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Returns the mean of paired differences and its 95% interval by Student's t.

    Args:
        first: values of one method, one a seed.
        second: those of the other, for the same seeds.

    Returns:
        A dict of `n`, `mean`, `sd`, `low` and `high`; the last three are None for one pair.

    Example:

    >>> found = paired_difference([0.5, 0.7, 0.6], [0.4, 0.4, 0.4])
    >>> [round(found[key], 3) for key in ("mean", "sd", "low", "high")]
    [0.2, 0.1, -0.048, 0.448]
    """
    differences = np.subtract(first, second, dtype=np.float64)
    n, mean = len(differences), float(np.mean(differences))
    found: dict[str, Any] = {"n": n, "mean": mean, "sd": None, "low": None, "high": None}
    if n < 2:
        return found
    sd = float(np.std(differences, ddof=1))
    half = float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)
    return found | {"sd": sd, "low": mean - half, "high": mean + half}


def compare(
    rows: Iterable[Mapping[str, Any]], pairs: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Returns the differences of accuracies between pairs of variants, over the seeds both have.

    Where a pair has several ratios, there is one entry more, with `ratio` None: of each seed the
    mean difference over all ratios, from the seeds that have them all. Ratios of one seed share a
    start and test examples, so that they are not counted as independent.

    Args:
        rows: rows of the results.
        pairs: names of variants; the difference is the first minus the second.
    """
    values: dict[tuple, dict[int, float]] = {}
    attacks: dict[str, None] = {}
    places: dict[tuple, dict[float, None]] = {}
    for row in rows:
        place = tuple(row[key] for key in GROUP)
        attacks[row["attack"]] = None
        places.setdefault(place, {})[row["ratio"]] = None
        key = (place, row["ratio"], row["attack"], row["variant"])
        values.setdefault(key, {})[row["seed"]] = row["accuracy"]
    found = []
    for (a, b), place, attack in itertools.product(pairs, places, attacks):
        by_ratio = {}
        for ratio in places[place]:
            one, other = (values.get((place, ratio, attack, name), {}) for name in (a, b))
            by_ratio[ratio] = {seed: one[seed] - other[seed] for seed in one if seed in other}
        for where, differences in _with_all({r: d for r, d in by_ratio.items() if d}):
            found.append(
                dict(zip(GROUP, place, strict=True))
                | {"ratio": where, "first": a, "second": b, "attack": attack}
                | paired_difference(list(differences.values()), [0.0] * len(differences))
                | {"by_seed": {str(seed): value for seed, value in differences.items()}}
            )
    return found


def _with_all(
    by_ratio: Mapping[float, Mapping[int, float]],
) -> Iterator[tuple[float | None, Mapping[int, float]]]:
    """Yields the differences of each ratio, and those of all ratios together."""
    yield from by_ratio.items()
    if len(by_ratio) < 2:
        return
    first, *others = by_ratio.values()
    seeds = [seed for seed in first if all(seed in other for other in others)]
    if seeds:
        yield None, {seed: float(np.mean([d[seed] for d in by_ratio.values()])) for seed in seeds}


def check_pairs(description: Description) -> None:
    """Raises ValueError if `compare` of a description names what it does not have."""
    known = _variants(description)
    for name in itertools.chain.from_iterable(description.compare):
        if name not in known:
            raise ValueError(f"Unknown in compare: {name!r}. Known: {', '.join(known)}.")


def _variants(description: Description) -> list[str]:
    """Returns the names of all variants that a description has."""
    found: dict[str, None] = {}
    few = [bits for bits in description.bits if bits < 32]
    for entry in description.methods:
        if entry.only_starts:
            continue
        own = entry.bits_in(description.bits)
        ways = [("", bits) for bits in own]
        if 32 in own:
            ways += itertools.product(description.quantize_afterwards, few)
        for how, bits in ways:
            found[variant({"method": entry.name, "bits": bits, "quantized": how})] = None
    return list(found)


def pairs_of(description: Description) -> list[tuple[str, str]]:
    """Returns the pairs of variants to compare; a pair of methods is one at all bits alike."""
    known = _variants(description)
    names = [entry.name for entry in description.methods if not entry.only_starts]
    asked: list[tuple[str, str]] = list(description.compare)
    if not asked:
        reference = next((e.name for e in description.methods if e.method == methods.DEFAULT), None)
        if reference is None:
            return []
        asked = [(reference, name) for name in names if name != reference]
        for bits, how in itertools.product(description.bits, description.quantize_afterwards):
            asked.append((f"{reference}-{bits}", f"{reference} + {how}-{bits}"))
    found: dict[tuple[str, str], None] = {}
    for first, second in asked:
        endings = [""]
        if first in names and second in names:
            endings = [v.removeprefix(first) for v in known if _is_of(v, first)]
        for ending in endings:
            if first + ending in known and second + ending in known:
                found[first + ending, second + ending] = None
    return list(found)


def _is_of(name: str, method: str) -> bool:
    rest = name.removeprefix(method)
    return name.startswith(method) and (
        not rest or rest.startswith(" + ") or (rest[0] == "-" and rest[1:].isdigit())
    )
