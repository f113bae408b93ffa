# SPDX-License-Identifier: Apache-2.0
"""What the figures of a study draw, read back from the axes."""

import numpy as np
import pytest

from tfmot_atmc.study.plots import accuracy_figure, tradeoff_figure

# Of two chains each, the second goes on from the end of the first; "ap" has none.
AFTER = {"atmc": "slow", "al0": "plain"}
RATIOS = {"slow": (0.1, 0.05), "slow-8": (0.1,), "atmc": (0.01,), "atmc-8": (0.01,)}
RATIOS |= {"plain": (0.1,), "al0": (0.02, 0.01), "ap": (0.01,)}


def _summary():
    points = [(name, ratio) for name, ratios in RATIOS.items() for ratio in ratios]
    return [
        {"variant": name, "ratio": ratio, "paper_ratio": ratio, "attack": attack}
        | {"mean": mean, "min": mean - 0.01, "max": mean + 0.02}
        for i, (name, ratio) in enumerate(points)
        for attack, mean in (("clean", 0.9 - i / 100), ("PGD-4", 0.5 - i / 100))
    ] + [
        {"variant": "da", "ratio": 1.0, "paper_ratio": 1.0, "attack": attack}
        | {"mean": 0.95, "min": 0.95, "max": 0.95}
        for attack in ("clean", "PGD-4")
    ]


def _drawn(axes):
    """The curves by name, and the lines that join them, in data coordinates."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    curves = {name: handle[0] for name, handle in handles.items() if name != "dense"}
    own = {id(line) for line in curves.values()}
    # The faint ones; bars and their caps are not.
    joins = [line for line in axes.lines if id(line) not in own and line.get_alpha() == 0.5]
    return curves, joins


def test_a_method_that_goes_on_from_another_has_its_colour_and_is_joined_to_its_end():
    curves, joins = _drawn(accuracy_figure(_summary(), ["clean", "PGD-4"], AFTER).axes[1])
    assert list(curves) == list(RATIOS)
    assert curves["atmc"].get_color() == curves["slow"].get_color() == joins[0].get_color()
    assert curves["atmc"].get_marker() != curves["slow"].get_marker()
    assert len({curves[name].get_color() for name in ("slow", "plain", "ap")}) == 3
    # Means of PGD-4 in the order of the points: 50, 49 | 48 | 47 | 46 | 45 | 44, 43 | 42.
    ends = [np.round(line.get_xydata(), 6).tolist() for line in joins]
    assert ends == [
        [[0.05, 49], [0.01, 47]],
        [[0.1, 48], [0.01, 46]],
        [[0.1, 45], [0.02, 44]],
    ]
    assert joins[1].get_linestyle() == "--"


def test_without_such_methods_every_one_has_its_own_colour_and_none_is_joined():
    curves, joins = _drawn(accuracy_figure(_summary(), ["clean"]).axes[0])
    methods = [name for name in RATIOS if not name.endswith("-8")]
    assert len({curves[name].get_color() for name in methods}) == len(methods)
    assert curves["slow-8"].get_color() == curves["slow"].get_color()
    assert joins == []


def test_clean_against_robust_accuracy_is_joined_in_the_same_way():
    axes = tradeoff_figure(_summary(), "PGD-4", AFTER).axes[0]
    curves, joins = _drawn(axes)
    assert curves["slow"].get_xydata() == pytest.approx(np.array([[90, 50], [89, 49]]))
    assert joins[0].get_xydata() == pytest.approx(np.array([[89, 49], [87, 47]]))
    assert len(joins) == 3
