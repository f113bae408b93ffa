# SPDX-License-Identifier: Apache-2.0
"""What a function that is being traced can know of what it is traced for."""

from __future__ import annotations

import tensorflow as tf

__all__ = ["within_xla"]


def within_xla() -> bool:
    """Returns whether what is being traced is for XLA to compile, where shapes must be static."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False
