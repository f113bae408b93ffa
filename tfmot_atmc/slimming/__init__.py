# SPDX-License-Identifier: Apache-2.0
"""Physical removal of what compression made dead: fewer channels, the same outputs."""

from tfmot_atmc.slimming.analysis import is_graph
from tfmot_atmc.slimming.report import LayerCost, SlimmingReport, compare_models, layer_costs
from tfmot_atmc.slimming.surgery import slim_model

__all__ = ["LayerCost", "SlimmingReport", "compare_models", "is_graph", "layer_costs", "slim_model"]
