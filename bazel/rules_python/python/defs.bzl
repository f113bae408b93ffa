"""Stands in for rules_python where Bazel has no modules: its rules are then built in."""

py_binary = native.py_binary
py_library = native.py_library
py_test = native.py_test
