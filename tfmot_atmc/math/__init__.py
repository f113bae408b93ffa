# SPDX-License-Identifier: Apache-2.0
"""Projections, codebooks and size accounting in plain TensorFlow and NumPy."""

from tfmot_atmc.math.allocation import allocate_budget, allocate_by_inverse
from tfmot_atmc.math.clustering import (
    ZeroKMeans,
    assign_to_codebook,
    zero_kmeans,
    zero_kmeans_of_all,
)
from tfmot_atmc.math.masks import (
    MaskStats,
    aligned_channels,
    kernel_stats,
    random_channels,
    random_filters,
)
from tfmot_atmc.math.matrices import is_separable, kernel_matrix, matrix_kernel, matrix_shape
from tfmot_atmc.math.optimal import optimal_zero_kmeans
from tfmot_atmc.math.projection import l0_masks, project_l0
from tfmot_atmc.math.sizes import (
    entropy_bits,
    paper_bits,
    parse_bytes,
    parse_count,
    parse_milliseconds,
)

__all__ = [
    "MaskStats",
    "ZeroKMeans",
    "aligned_channels",
    "allocate_budget",
    "allocate_by_inverse",
    "assign_to_codebook",
    "entropy_bits",
    "is_separable",
    "kernel_matrix",
    "kernel_stats",
    "l0_masks",
    "matrix_kernel",
    "matrix_shape",
    "optimal_zero_kmeans",
    "paper_bits",
    "parse_bytes",
    "parse_count",
    "parse_milliseconds",
    "project_l0",
    "random_channels",
    "random_filters",
    "zero_kmeans",
    "zero_kmeans_of_all",
]


def __dir__() -> list[str]:
    return __all__
