# SPDX-License-Identifier: Apache-2.0
"""Projection of several tensors onto what a budget allows: nonzeros, or costs of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.math._budgeted import select_within
from tfmot_atmc.math._largest import largest, refuse_non_finite

__all__ = ["l0_masks", "project_l0"]

_ALGORITHMS = ("auto", "histogram", "bisection")


def _as_tensors(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    if isinstance(tensors, (tf.Tensor, tf.Variable, np.ndarray)):
        raise TypeError(
            "`tensors` must be a list of tensors. Received a single tensor; pass [tensor]."
        )
    out = [tf.convert_to_tensor(t) for t in tensors]
    if not out:
        raise ValueError("`tensors` is empty; expected at least one floating-point tensor.")
    for tensor in out:
        if not tensor.dtype.is_floating:
            raise TypeError(f"Expected floating-point tensors. Received dtype {tensor.dtype.name}.")
    return out


def _kept(
    tensors: Sequence[tf.Tensor],
    budget: Any,
    costs: Sequence[Any] | None,
    groups: Sequence[Any] | None,
    algorithm: str,
    values: bool,
) -> list[tf.Tensor]:
    given = _as_tensors(tensors)
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"`algorithm` must be one of {_ALGORITHMS}. Received {algorithm!r}.")
    if costs is None and groups is None:
        return largest(given, budget, algorithm, values)
    masks = select_within(given, budget, costs, groups)
    if values:
        masks = [tf.where(m, t, tf.zeros_like(t)) for m, t in zip(masks, given, strict=True)]
    if algorithm == "bisection":
        return masks
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(t)) for t in given])
    return refuse_non_finite(masks, finite)


def l0_masks(
    scores: Sequence[tf.Tensor],
    budget: int | float | tf.Tensor,
    costs: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    *,
    algorithm: str = "auto",
) -> list[tf.Tensor]:
    """Marks the entries of largest magnitude over all tensors together, within a budget.

    Args:
      scores: non-empty list of floating-point tensors of any shapes and dtypes.
      budget: see `project_l0`.
      costs: see `project_l0`.
      groups: see `project_l0`.
      algorithm: "histogram" (fast on CPU; works eagerly and in a `tf.function`, but not under
        XLA), "bisection" (XLA-compilable, static shapes) or "auto" (= "histogram").

    Returns:
      A list of bool tensors with the shapes of `scores`; without costs and groups they hold exactly
      `min(budget, size)` True entries. Among equal magnitudes the lower flat index, counted
      through the list, wins.

    Raises:
      ValueError: empty list, negative `budget`, unknown algorithm, costs or groups that do not fit,
        or (eagerly) an entry that is not finite. In a graph such an entry raises
        `tf.errors.InvalidArgumentError` instead; "bisection" does not check.
      TypeError: a tensor that is not floating-point, or, without costs, a `budget` that is not an
        integer.

    Example:

    >>> [m.numpy().tolist() for m in l0_masks([tf.constant([1., -3.]), tf.constant([3., 2.])], 2)]
    [[False, True], [True, False]]
    """
    return _kept(scores, budget, costs, groups, algorithm, values=False)


def project_l0(
    tensors: Sequence[tf.Tensor],
    budget: int | float | tf.Tensor,
    costs: Sequence[Any] | None = None,
    groups: Sequence[Any] | None = None,
    *,
    algorithm: str = "auto",
) -> list[tf.Tensor]:
    """Keeps the entries of a list of tensors that are worth most within a budget.

    With neither costs nor groups this is the Euclidean projection used for the weights in ATMC (Gui
    et al., 2019, Sec. 3.3): the `budget` largest magnitudes stay as they are, everything else
    becomes zero.

    With costs the entries are taken in falling order of magnitude squared per cost, until one does
    not fit in what is left of the budget; there it stops. Entries that alone cost more than the
    whole budget are passed over. What is kept is therefore optimal where the budget is used up, and
    within the worth of one entry of it otherwise.

    Args:
      tensors: non-empty list of floating-point tensors of any shapes and dtypes.
      budget: how much all that is kept may cost, at least 0; a Python number or a scalar tensor.
        Without costs it is the number of entries, an integer.
      costs: None where each entry costs one; or for each tensor a number above 0, or an array that
        broadcasts to its shape. Shapes must then be static.
      groups: None; or for each tensor None, or an array of integers of its shape. Entries of one
        number, also in different tensors, are kept or dropped together: their magnitudes squared
        and their costs are added up. A negative number stands for an entry on its own.
      algorithm: see `l0_masks`; with costs or groups there is one, which XLA compiles.

    Returns:
      A list of tensors with the shapes and dtypes of `tensors`. Among equals the lower flat index,
      counted through the list (for a group that of its first entry), is kept.

    Raises:
      ValueError: see `l0_masks`.
      TypeError: see `l0_masks`.

    Example:

    >>> [t.numpy().tolist() for t in project_l0([tf.constant([1., -3.]), tf.constant([.5, 2.])], 2)]
    [[0.0, -3.0], [0.0, 2.0]]

    An entry of the first tensor costs four times one of the second:

    >>> x = [tf.constant([1., -3.]), tf.constant([.9, 2.])]
    >>> [t.numpy().tolist() for t in project_l0(x, 6, costs=[4, 1])]
    [[0.0, -3.0], [0.8999999761581421, 2.0]]
    """
    return _kept(tensors, budget, costs, groups, algorithm, values=True)
