# SPDX-License-Identifier: Apache-2.0
"""An attack of a user's own: the worst of a few random points of the ball."""

import tensorflow as tf

from tfmot_atmc.attacks import Attack, fold_in


class WorstOf(Attack):
    """Tries random points of the ball and keeps, for each input, the one of the largest loss."""

    def __init__(self, *, tries=3, **kwargs):
        super().__init__(**kwargs)
        self.tries = tries

    def get_config(self):
        return {**super().get_config(), "tries": self.tries}

    def _perturb(self, problem, seed):
        best, (_, most) = problem.x, problem.evaluate(problem.x)
        for number in range(self.tries):
            moved = problem.random_start(fold_in(seed, number))
            _, found = problem.evaluate(moved)
            best = problem.select(found > most, moved, best)
            most = tf.maximum(found, most)
        return best
