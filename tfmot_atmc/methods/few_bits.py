# SPDX-License-Identifier: Apache-2.0
"""Dense networks of few bits: more weights in the same bytes, instead of fewer."""

from __future__ import annotations

import dataclasses

from tfmot_atmc.kernels import GridKernel, Kernel, Site
from tfmot_atmc.methods.small_dense import SmallDense
from tfmot_atmc.methods.stages import Stage, starting

# At the rate of the dense start, weights that cross from one value to the next never settle.
_RATE = 3e-4


class FewBits(SmallDense, name="few_bits"):
    """Adversarial training of a dense network whose weights have 2 to 8 bits.

    A weight of a sparse network costs 2 to 3 bytes with its index; one of 4 bits costs half a byte.
    Every kernel is whole numbers times one scale, which is trained (`GridKernel`); real weights are
    trained behind them. The network is the widest of its family whose file is within the budget.
    `export_tflite(values="int4")` stores it so.

    Args:
        bits: bits a weight, in 2..8; files store 2, 4 or 8.
        ratio: weights as a ratio of those of the network at width 1, in (0, 1].
        ends: bits of the first and of the last kernel, which have few weights and feel rounding
            most.

    Raises:
        ValueError: if a value is out of range.

    Source: the grid and its scale are those of Esser et al., "Learned step size quantization", ICLR
    2020, who keep the first and the last layer at 8 bits too.

    Example:

    >>> [stage.name for stage in FewBits(bits=4).stages(8)]
    ['bits4']
    """

    def __init__(self, bits: int = 4, ratio: float = 1.0, ends: int = 8):
        super().__init__(ratio)
        self.bits, self.ends = bits, ends
        for given in (bits, ends):
            GridKernel(given)  # refuses bits out of range
        self.file_values = f"int{2 if bits == 2 else 4 if bits <= 4 else 8}"

    def kernel_for(self, site: Site) -> Kernel:
        return GridKernel(self.ends if site.index in (0, len(site.sizes) - 1) else self.bits)

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns one stage in which the weights have few bits, after the dense start."""
        if phases != "own":  # as many passes as the others have
            epochs = super().stages(epochs, preset, phases=phases, finish=finish)[0].epochs
        stage = starting(self, epochs, preset, f"bits{self.bits}")
        return [dataclasses.replace(stage, warmup_epochs=0, learning_rate=_RATE)]
