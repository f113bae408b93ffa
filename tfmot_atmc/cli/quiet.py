# SPDX-License-Identifier: Apache-2.0
"""Native libraries write to the standard error what no user asked for; here it is held back."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator

__all__ = ["native_messages_held"]

_STDERR = 2


@contextlib.contextmanager
def native_messages_held() -> Iterator[None]:
    """Holds what TensorFlow's native code writes to the standard error; shows it after an error.

    TensorFlow tells what it found in the machine before any log level is read, so that only its
    stream can be held. Python's own messages are written as always.
    """
    sys.stderr.flush()
    real, pythons = os.dup(_STDERR), sys.stderr
    with tempfile.TemporaryFile() as held, os.fdopen(os.dup(real), "w", buffering=1) as direct:
        os.dup2(held.fileno(), _STDERR)
        if _is_the_stream(pythons):
            sys.stderr = direct
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            sys.stderr = pythons
            os.dup2(real, _STDERR)
            os.close(real)


def _is_the_stream(stream: object) -> bool:
    try:
        return isinstance(stream, io.TextIOBase) and stream.fileno() == _STDERR
    except OSError:  # a stream in memory
        return False
