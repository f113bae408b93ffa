# SPDX-License-Identifier: Apache-2.0
"""What a model is to do: how labels are read, when an answer is right, which loss an attack raises.

Training, validation and evaluation ask here, so that a label form means the same to all of them.
"""

from tfmot_atmc.tasks.classes import class_labels
from tfmot_atmc.tasks.labels import Task, binary_logits, check_attack, task_of
from tfmot_atmc.tasks.losses import check_loss, example_losses
from tfmot_atmc.tasks.rows import LabelLoss, Rows, has_classes

__all__ = [
    "LabelLoss",
    "Rows",
    "Task",
    "binary_logits",
    "check_attack",
    "check_loss",
    "class_labels",
    "example_losses",
    "has_classes",
    "task_of",
]
