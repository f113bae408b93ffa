# SPDX-License-Identifier: Apache-2.0
"""Sparse .tflite files: conversion, sparse storage, and the checks on what was written."""

from tfmot_atmc.export.tflite.export import TooLargeError, export_tflite

__all__ = ["TooLargeError", "export_tflite"]


def __dir__() -> list[str]:
    return __all__
