# SPDX-License-Identifier: Apache-2.0
"""What a model is to do: how labels are read, when an answer is right, which loss an attack raises.

Training, validation and evaluation ask here, so that a label form means the same to all of them.
"""

from tfmot_atmc.tasks.labels import Task, binary_logits, check_attack, class_labels, task_of
from tfmot_atmc.tasks.losses import check_loss, example_losses

__all__ = [
    "Task",
    "binary_logits",
    "check_attack",
    "check_loss",
    "class_labels",
    "example_losses",
    "task_of",
]
