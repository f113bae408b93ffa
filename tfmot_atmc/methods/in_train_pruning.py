# SPDX-License-Identifier: Apache-2.0
"""In-train pruning: masks of channels are trained under attack towards a target of operations."""

from __future__ import annotations

from typing import Any

from tfmot_atmc.constraints import ChannelMasks, Constraint
from tfmot_atmc.methods.base import Method
from tfmot_atmc.methods.stages import Stage, check_preset


class InTrainPruning(Method, name="in_train_pruning"):
    """Adversarial training and pruning of channels at once, from scratch, to a smaller network.

    Each channel has a mask that is trained beside the weights, and a loss drives the operations to
    a target (`ChannelMasks`). `slim_model` of what is stripped is physically smaller.

    Args:
        ratio: target of the multiply-accumulates that are left, as a ratio of the dense ones, in
            (0, 1].
        scale: weight of the operations loss, b in the paper; too small misses the target. None for
            one that fits the number of channels.
        begin: step (int) or fraction of the planned steps (float) from which masks are trained.
        freeze: step or fraction from which they stay as they are.
        regularization: weight of the squares of the masks; without it nothing moves.
        mask_rate: learning rate of the masks, which falls to zero until they freeze; None for one
            that fits the number of steps.

    Raises:
        ValueError: if a value is out of range; and by `compress`, if no channel may go.

    Source: joint adversarial training and pruning ("in-train pruning"); details in `ChannelMasks`.

    Example:

    >>> InTrainPruning(ratio=0.3).stages(300, "paper")[0].learning_rate
    0.1
    """

    ratio_of = "macs"
    starts_dense = False

    def __init__(
        self,
        ratio: float = 0.5,
        scale: float | None = None,
        begin: int | float = 20 / 300,
        freeze: int | float = 0.8,
        regularization: float = 1e-3,
        mask_rate: float | None = None,
    ):
        self.ratio, self.scale = ratio, scale
        self.begin, self.freeze = begin, freeze
        self.regularization, self.mask_rate = regularization, mask_rate
        self.constraints()

    def constraints(self) -> list[Constraint]:
        return [
            ChannelMasks(
                self.ratio,
                self.scale,
                self.begin,
                self.freeze,
                self.regularization,
                self.mask_rate,
            )
        ]

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns one stage in which everything is trained, from scratch.

        In the paper's preset the rate is 0.1 and falls to a tenth every 80 of 300 epochs. `finish`
        makes it longer, by as much as other methods take for codebooks.
        """
        check_preset(preset)
        epochs += max(1, epochs // 12) if finish else 0
        how: dict[str, Any] = {"clipnorm": 5.0, "warmup_epochs": min(1.5, epochs / 4)}
        if preset == "paper":
            how = {"clipnorm": None, "batch_size": 128, "decay": (80 / 300, 160 / 300, 240 / 300)}
        return [Stage("pruned", self, epochs, 0.1, **how)]
