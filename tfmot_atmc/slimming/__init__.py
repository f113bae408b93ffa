# SPDX-License-Identifier: Apache-2.0
"""Physical removal of what compression made dead: fewer channels, the same outputs."""

from tfmot_atmc.slimming.analysis import is_graph, kept_channels
from tfmot_atmc.slimming.factoring import can_factor, factor_layers
from tfmot_atmc.slimming.removal import slim_model
from tfmot_atmc.slimming.report import LayerCost, SlimmingReport, compare_models, layer_costs
from tfmot_atmc.slimming.trimming import ChannelInfluence, measure_influence, trim_channels

__all__ = [
    "ChannelInfluence",
    "LayerCost",
    "SlimmingReport",
    "can_factor",
    "compare_models",
    "factor_layers",
    "is_graph",
    "kept_channels",
    "layer_costs",
    "measure_influence",
    "slim_model",
    "trim_channels",
]


def __dir__() -> list[str]:
    return __all__
