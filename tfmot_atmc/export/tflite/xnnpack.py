# SPDX-License-Identifier: Apache-2.0
"""Where zeros make XNNPACK faster by themselves: its sparse kernels, and what they ask for.

XNNPACK, the stock interpreter's delegate, multiplies sparse 1x1 convolutions by their nonzeros on
ARM, in networks of the pattern of MobileNet. On x86 with AVX it never does. What is said here was
seen with LiteRT 2.3.0 for aarch64 under emulation; it tells whether the kernels are chosen, not how
much faster a device is.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from tfmot_atmc.slimming.analysis import graph_of, is_graph, nodes_of
from tfmot_atmc.utils.tables import table_text

__all__ = ["SparseKernelReport", "SparseLayer", "xnnpack_sparse_layers"]

_FEWEST_ZEROS = 2 / 3
_DEPTHWISE = ((3, 3), (5, 5))


@dataclasses.dataclass(frozen=True)
class SparseLayer:
    """What XNNPACK's sparse inference makes of one convolution.

    Attributes:
        name: name of the layer.
        role: `"sparse"` for a 1x1 convolution that runs by its nonzeros, `"stem"` or `"depthwise"`
            for a dense one that goes with them, or `"blocks"` for one that keeps all of them from
            running.
        density: nonzeros as a ratio of the kernel's entries.
        reason: why it blocks, and what to do; or "".
    """

    name: str
    role: str
    density: float
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class SparseKernelReport:
    """Whether XNNPACK's sparse kernels run a model on ARM, and why not.

    Attributes:
        layers: one `SparseLayer` for each convolution, in order.
        density: nonzeros of all 1x1 convolutions together, as a ratio of their entries; 1 where
            there is none.
        reasons: what keeps the kernels from running; empty where they run.
    """

    layers: tuple[SparseLayer, ...]
    density: float
    reasons: tuple[str, ...]

    @property
    def fires(self) -> bool:
        """Whether the sparse kernels are chosen, for a float32 file on ARM."""
        return not self.reasons

    def __str__(self) -> str:
        rows = [(one.name, one.role, f"{one.density:.1%}", one.reason) for one in self.layers]
        said = "XNNPACK's sparse kernels run this model on ARM64, from a float32 file; not on x86."
        if not self.fires:
            said = "\n".join(["XNNPACK's sparse kernels do not run this model:", *self.reasons])
        return f"{table_text(('layer', 'role', 'nonzeros', 'why'), rows)}\n{said}"


def xnnpack_sparse_layers(model: keras.Model) -> SparseKernelReport:
    """Tells for each convolution whether XNNPACK's sparse kernels would run it on ARM.

    They need the pattern of MobileNet: a first 3x3 convolution with stride 2 of images of three
    channels, then 1x1 convolutions and depthwise ones; strides of 2 behind
    `ZeroPadding2D(1)` with `padding="valid"`; and two thirds of all 1x1 weights together zero.
    Batch normalisation, ReLU, sums and any batch are fine, int8 is not.

    Args:
        model: a built plain functional or sequential model.

    Returns:
        A `SparseKernelReport`; print it for a table.

    Raises:
        ValueError: if the graph of the model is not known.

    Example:

    >>> print(xnnpack_sparse_layers(keras.Sequential([
    ...     keras.Input((28, 28, 1)), keras.layers.Conv2D(4, 5)])).reasons[0])
    conv2d: the first convolution must take three channels; it takes 1
    """
    if not is_graph(model) or not model.built:
        raise ValueError(f"The graph of {model.name!r}, a {type(model).__name__}, is not known.")
    nodes = nodes_of(graph_of(model))
    before = {id(node.outputs[0]): node.operation for node in nodes}
    layers: list[SparseLayer] = []
    weights = nonzeros = 0
    for node in nodes:
        layer = node.operation
        if not isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
            continue
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        padded = isinstance(before.get(id(node.input_tensors[0])), keras.layers.ZeroPadding2D)
        role, reason = _role(layer, padded, first=not layers)
        share = np.count_nonzero(kernel) / max(kernel.size, 1)
        layers.append(SparseLayer(layer.name, role, share, reason))
        if role == "sparse":
            weights, nonzeros = weights + kernel.size, nonzeros + int(np.count_nonzero(kernel))
    density = nonzeros / weights if weights else 1.0
    reasons = [f"{one.name}: {one.reason}" for one in layers if one.role == "blocks"]
    if not weights:
        reasons.append("There is no 1x1 convolution with stride 1.")
    elif 1 - density < _FEWEST_ZEROS:
        reasons.append(
            f"{1 - density:.1%} of the weights of all 1x1 convolutions are zero; it takes "
            f"{_FEWEST_ZEROS:.1%}."
        )
    return SparseKernelReport(tuple(layers), density, tuple(reasons))


def _role(layer: Any, padded: bool, *, first: bool) -> tuple[str, str]:
    """Returns the role of a convolution, and why it blocks."""
    if layer.data_format != "channels_last":
        return "blocks", "channels must come last"
    window, strides = tuple(layer.kernel_size), tuple(layer.strides)
    reason = _border(layer, strides, padded)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        if first:
            return "blocks", "the first convolution must not be depthwise"
        if window not in _DEPTHWISE or layer.depth_multiplier != 1:
            reason = "a depthwise convolution must have a 3x3 or 5x5 window and one output each"
        return ("blocks", reason) if reason else ("depthwise", "")
    if first:
        channels = layer.kernel.shape[-2] * layer.groups
        if channels != 3:
            reason = f"the first convolution must take three channels; it takes {channels}"
        elif window != (3, 3) or strides != (2, 2):
            reason = (
                "the first convolution must have a 3x3 window and stride 2; it has "
                f"{window[0]}x{window[1]} and {strides[0]}"
            )
        return ("blocks", reason) if reason else ("stem", "")
    if window != (1, 1) or strides != (1, 1) or layer.groups != 1:
        return "blocks", (
            f"there is no sparse kernel for a {window[0]}x{window[1]} window with stride "
            f"{strides[0]} and {layer.groups} groups, only for 1x1 with stride 1"
        )
    return "sparse", ""


def _border(layer: Any, strides: tuple[int, ...], padded: bool) -> str:
    """Returns what is wrong with the border of a convolution with strides; or ""."""
    if max(strides) == 1 or (layer.padding == "valid" and padded):
        return ""
    return 'with stride 2 put ZeroPadding2D(1) in front and take padding="valid"'
