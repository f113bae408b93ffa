# SPDX-License-Identifier: Apache-2.0
"""A method of a user's own: scores of fixed weights are trained first, then the weights chosen."""

import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints import FixedSupport
from tfmot_atmc.kernels import Kernel, PlainKernel
from tfmot_atmc.math import l0_masks
from tfmot_atmc.methods import Method, Stage


class ChosenKernel(Kernel):
    """Fixed weights W, of which those with the largest scores S are used."""

    roles = {"W": "fixed", "S": "score"}

    def __init__(self, kept):
        self.kept = kept

    def initial_values(self, kernel):
        fan_in = kernel.size // kernel.shape[-1]
        scores = np.sqrt(6 / fan_in) * kernel / max(np.abs(kernel).max(), 1e-12)
        return {"W": np.asarray(kernel), "S": scores.astype(kernel.dtype)}

    def compose(self, factors):
        weights, scores = (tf.convert_to_tensor(factors[name]) for name in ("W", "S"))
        (mask,) = l0_masks([scores], self.kept, algorithm="bisection")
        size = tf.abs(scores)  # forward the mask, backward as if it were the magnitude
        return weights * (tf.cast(mask, size.dtype) + size - tf.stop_gradient(size))


class ScoredSubnetwork(Method):
    """Trains which weights stay, at an equal ratio in each layer, and then these weights."""

    def __init__(self, ratio=0.1, scores=True):
        self.ratio, self.scores = ratio, scores

    def kernel_for(self, site):
        return ChosenKernel(max(1, int(self.ratio * site.size))) if self.scores else PlainKernel()

    def constraints(self):
        return [] if self.scores else [FixedSupport(self.ratio, floors=0)]

    def stages(self, epochs, preset="default", **options):
        return [
            Stage("scores", self.but(scores=True), epochs, 0.1, objective="half"),
            Stage("weights", self.but(scores=False), epochs, 0.01),
        ]
