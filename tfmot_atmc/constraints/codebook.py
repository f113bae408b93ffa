# SPDX-License-Identifier: Apache-2.0
"""One codebook of 2^b values for every factor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import AddWeight, Constraint, Factor, Moment
from tfmot_atmc.math import (
    ZeroKMeans,
    assign_to_codebook,
    optimal_zero_kmeans,
    zero_kmeans,
    zero_kmeans_of_all,
)
from tfmot_atmc.utils import distribution

ALGORITHMS = ("admm", "shared")


@dataclass
class _State:
    """The variables of one factor."""

    factor: Factor
    codebook: keras.Variable
    duplicate: keras.Variable | None = None  # theta' of the paper
    dual: keras.Variable | None = None  # u of the paper, scaled by rho
    members: keras.Variable | None = None  # index of each entry's value; 0 is zero


@functools.cache
def _clustering(num_values: int, grid: int | None, warm: bool) -> Callable:
    """Returns the clustering of flat values, traced once for factors of all shapes."""

    def cluster(flat: tf.Tensor, codebook: tf.Tensor) -> ZeroKMeans:
        return zero_kmeans(
            flat,
            num_values,
            initial_codebook=codebook if warm else None,
            grid=grid,
        )

    signature = [tf.TensorSpec([None], tf.float32), tf.TensorSpec([num_values], tf.float32)]
    return tf.function(
        cluster,
        input_signature=signature,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )


class Codebook(Constraint):
    """At most 2^bits distinct nonzero values in every factor; zero is free.

    Two ways lead there:

    - `"admm"`, the paper's: a quantised duplicate theta' of every factor is set to
      ZeroKmeans(theta + u) every `interval` steps, the dual u gathers the difference, and
      rho/2 ||theta - theta' + u||^2 is added to the loss.
    - `"shared"`: at `begin` every nonzero entry is tied to its nearest centre; from then on entries
      of one centre move together, by their mean, which is the projection on the set of weights
      with that sharing. The zeros stay zeros.

    Either way `finalized` clusters the nonzeros alone, so a budget of nonzeros kept before is kept
    exactly.

    Args:
        bits: b, in 1..16; a factor takes at most 2^b distinct nonzero values.
        algorithm: `"shared"` or `"admm"`.
        begin: step (int) or fraction of the planned steps (float) at which it starts to act.
        rho: weight of the ADMM penalty.
        interval: steps between two updates of theta' and u.
        grid: None, or an int n: the values are confined to integers in [-n, n] times one scale per
            factor, which survive int8 export bit for bit with n = 127.

    Source: Gui et al., NeurIPS 2019, section 3.3 and algorithms 1 and 2; intervals from the
    authors' code. Sharing by mean follows Han et al., "Deep Compression", 2016, section 3.
    """

    def __init__(
        self,
        bits: int = 8,
        algorithm: str = "shared",
        begin: int | float = 0,
        rho: float = 0.1,
        interval: int = 10,
        grid: int | None = None,
    ):
        if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16:
            raise ValueError(
                f"`bits` must be a whole number in 1..16. Received {bits!r}. "
                "Leave the codebook out for unquantised weights."
            )
        if algorithm not in ALGORITHMS:
            raise ValueError(f"`algorithm` must be one of {ALGORITHMS}. Received {algorithm!r}.")
        if rho < 0 or interval < 1:
            raise ValueError(
                f"`rho` must not be negative and `interval` at least 1. Received {rho}, {interval}."
            )
        if grid is not None and not 1 <= grid <= 32767:
            raise ValueError(f"`grid` must lie in 1..32767. Received {grid!r}.")
        self.bits, self.algorithm, self.begin = bits, algorithm, begin
        self.rho, self.interval, self.grid = rho, interval, grid
        self.num_values = 2**bits
        self.needs_horizon = isinstance(begin, float)

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        self.active = add_weight(name="codebook_on", shape=(), dtype="bool", initializer="zeros")
        self._states = []
        for i, factor in enumerate(factors):
            shape = tuple(factor.variable.shape)
            state = _State(
                factor,
                add_weight(name=f"codebook_{i}", shape=(self.num_values,), initializer="zeros"),
            )
            if self.algorithm == "admm":
                state.duplicate = add_weight(
                    name=f"duplicate_{i}", shape=shape, initializer="zeros"
                )
                state.dual = add_weight(name=f"dual_{i}", shape=shape, initializer="zeros")
            else:
                state.members = add_weight(
                    name=f"members_{i}", shape=shape, dtype="int32", initializer="zeros"
                )
            self._states.append(state)

    # --- ADMM ---------------------------------------------------------------------------------

    def penalty(self, moment: Moment) -> tf.Tensor | None:
        if self.algorithm != "admm" or self.rho == 0:
            return None
        terms = [
            tf.reduce_sum(tf.square(s.factor.read() - s.duplicate.value + s.dual.value))
            for s in self._states
            if s.duplicate is not None and s.dual is not None and s.factor.trained
        ]
        if not terms:
            return None
        return tf.cond(
            self.active.value, lambda: 0.5 * self.rho * tf.add_n(terms), lambda: tf.constant(0.0)
        )

    def after_projection(self, moment: Moment) -> None:
        since = moment.step - moment.at(self.begin)
        if self.algorithm == "admm":
            due = (since > 0) & (since % self.interval == 0)
            tf.cond(due, lambda: self._update_duals(moment.compiled), lambda: tf.constant(False))
        else:
            due = (since >= 0) & ~self.active.value
            tf.cond(due, lambda: self._tie(moment.compiled), lambda: tf.constant(False))

    def _update_duals(self, compiled: bool) -> tf.Tensor:
        thetas = [state.factor.read() for state in self._states]
        duals = [s.dual.value for s in self._states if s.dual is not None]
        wanted = [theta + dual for theta, dual in zip(thetas, duals, strict=True)]
        clustered = self._cluster_all(wanted) if compiled else None
        for i, (state, theta) in enumerate(zip(self._states, thetas, strict=True)):
            if state.duplicate is None or state.dual is None or not state.factor.trained:
                continue
            found = clustered[i] if clustered else self._cluster(wanted[i], state)
            values, codebook = distribution.first([found.values, found.codebook])
            state.codebook.assign(codebook)
            state.duplicate.assign(values)
            state.dual.assign_add(theta - values)
        self.active.assign(True)
        return tf.constant(True)

    def _cluster_all(self, tensors: Sequence[tf.Tensor]) -> list[ZeroKMeans]:
        """Clusters for XLA, from the stored codebooks; these are zeros when there are none yet."""
        return zero_kmeans_of_all(
            tensors,
            self.num_values,
            zeros_stay_alone=self.algorithm == "shared",
            initial_codebooks=[state.codebook.value for state in self._states],
            grid=self.grid,
        )

    # --- shared values --------------------------------------------------------------------------

    def project(self, moment: Moment, gradients: Sequence[tf.Tensor] | None) -> None:
        if self.algorithm != "shared":
            return
        tf.cond(
            self.active.value, lambda: self._average(moment.compiled), lambda: tf.constant(False)
        )

    def _tie(self, compiled: bool) -> tf.Tensor:
        given = [state.factor.read() for state in self._states]
        clustered = self._cluster_all(given) if compiled else None
        for i, (state, value) in enumerate(zip(self._states, given, strict=True)):
            if state.members is None or not state.factor.trained:
                continue
            best = clustered[i][:2] if clustered else self._best_clusters(value)
            values, codebook = distribution.first(list(best))
            state.codebook.assign(codebook)
            edges = 0.5 * (codebook[1:] + codebook[:-1])
            flat = tf.searchsorted(edges, tf.reshape(values, (-1,)), side="left") + 1
            index = tf.reshape(tf.cast(flat, tf.int32), value.shape)
            state.members.assign(tf.where(value != 0, index, tf.zeros_like(index)))
        self.active.assign(True)
        return self._average(compiled)

    def _best_clusters(self, value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the optimally clustered nonzeros and their codebook."""

        def optimal(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            best = optimal_zero_kmeans(array, self.num_values, where=array != 0, grid=self.grid)
            return np.asarray(best.values, np.float32), np.asarray(best.codebook, np.float32)

        values, codebook = tf.numpy_function(optimal, [value], [tf.float32, tf.float32])
        return tf.ensure_shape(values, value.shape), tf.ensure_shape(codebook, [self.num_values])

    def _average(self, compiled: bool) -> tf.Tensor:
        """Gives all entries of one centre their mean, and zero to the others."""
        found = [
            (state, *self._means(state, state.members.value, compiled))
            for state in self._states
            if state.members is not None and state.factor.trained
        ]
        if not found:
            return tf.constant(True)
        # A device may add up in any order: the machines agree on one result.
        agreed = distribution.first([means for _, means, _ in found])
        for (state, _, spread), means in zip(found, agreed, strict=True):
            state.codebook.assign(means[1:])
            shape = state.factor.variable.shape
            state.factor.variable.assign(tf.reshape(spread(means), shape))
        return tf.constant(True)

    def _means(
        self, state: _State, members: tf.Tensor, compiled: bool
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        """Returns the centres' means, zero first, and how they spread over the flat factor."""
        members = tf.reshape(members, (-1,))
        flat = tf.reshape(state.factor.read(), (-1,))
        size = self.num_values + 1
        if compiled:  # XLA: static shapes
            counts = tf.math.unsorted_segment_sum(tf.ones_like(flat), members, size)
            sums = tf.math.unsorted_segment_sum(flat, members, size)
        else:  # only the nonzeros, which are few
            where = tf.where(members > 0)[:, 0]
            code = tf.gather(members, where)
            chosen = tf.gather(flat, where)
            counts = tf.cast(tf.math.bincount(code, minlength=size, maxlength=size), flat.dtype)
            sums = tf.math.bincount(code, weights=chosen, minlength=size, maxlength=size)
        means = tf.math.divide_no_nan(sums, counts)
        means = tf.concat([tf.zeros((1,), means.dtype), means[1:]], axis=0)

        def spread(means: tf.Tensor) -> tf.Tensor:
            if compiled:
                return tf.gather(means, members)
            total = tf.shape(flat, out_type=tf.int64)
            return tf.scatter_nd(where[:, None], tf.gather(means, code), total)

        return means, spread

    # --- both -----------------------------------------------------------------------------------

    def _cluster(self, values: tf.Tensor, state: _State) -> ZeroKMeans:
        """Clusters from the stored codebook, or afresh when there is none yet."""
        stored = state.codebook.value
        flat = tf.reshape(values, (-1,))
        cold = _clustering(self.num_values, self.grid, False)
        warm = _clustering(self.num_values, self.grid, True)
        found = tf.cond(self.active.value, lambda: warm(flat, stored), lambda: cold(flat, stored))
        return ZeroKMeans(tf.reshape(found[0], values.shape), found[1], found[2])

    def deploy(self, values: Sequence[tf.Tensor], compiled: bool = False) -> list[tf.Tensor]:
        if self.algorithm == "shared":
            return list(values)  # already feasible once it acts

        def snapped() -> list[tf.Tensor]:
            return [
                assign_to_codebook(value, state.codebook.value, where=value != 0)
                if state.factor.trained
                else tf.identity(value)
                for value, state in zip(values, self._states, strict=True)
            ]

        return tf.cond(self.active.value, snapped, lambda: [tf.identity(v) for v in values])

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [
            self._quantized(value) if state.factor.trained else value
            for value, state in zip(values, self._states, strict=True)
        ]

    def _quantized(self, value: np.ndarray) -> np.ndarray:
        nonzero = value[value != 0]
        if self.grid is None and np.unique(nonzero).size <= self.num_values:
            return value
        found = optimal_zero_kmeans(value, self.num_values, where=value != 0, grid=self.grid)
        return np.asarray(found.values, value.dtype)

    def adopt(self, values: Sequence[np.ndarray]) -> None:
        for value, state in zip(values, self._states, strict=True):
            if not state.factor.trained:
                continue
            distinct = np.unique(value[value != 0])
            padded = np.full(self.num_values, distinct[-1] if distinct.size else 0, value.dtype)
            padded[: distinct.size] = distinct
            state.codebook.assign(padded)
            if state.duplicate is not None and state.dual is not None:
                state.duplicate.assign(value)
                state.dual.assign(np.zeros_like(value))
            if state.members is not None:
                index = np.searchsorted(distinct, value) + 1
                state.members.assign(np.where(value != 0, index, 0))
        self.active.assign(True)

    def violation(self, values: Sequence[np.ndarray]) -> str | None:
        for value, state in zip(values, self._states, strict=True):
            distinct = np.unique(value[value != 0]).size
            if distinct > self.num_values and state.factor.trained:
                return (
                    f"{state.factor.name} has {distinct} distinct values, at most {self.num_values}"
                )
        return None

    def scalars(self) -> dict[str, float]:
        residuals = [
            float(tf.norm(s.factor.read() - s.duplicate.value))
            for s in self._states
            if s.duplicate is not None
        ]
        return {"admm_residual": float(np.linalg.norm(residuals))} if residuals else {}

    def codebooks(self) -> dict[str, np.ndarray]:
        """Returns the current codebook of every factor, by the factor's name."""
        return {s.factor.name: keras.ops.convert_to_numpy(s.codebook) for s in self._states}
