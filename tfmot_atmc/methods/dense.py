# SPDX-License-Identifier: Apache-2.0
"""DA: dense adversarial training, the start of all other methods."""

from __future__ import annotations

from tfmot_atmc.methods.base import Method


class DA(Method):
    """Dense adversarial training: plain kernels, no constraint.

    Source: Madry et al., 2018; "DA" in Gui et al., NeurIPS 2019, section 4.1.
    """
