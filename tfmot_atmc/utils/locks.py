# SPDX-License-Identifier: Apache-2.0
"""Folders that one process at a time writes to."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["locked"]

_PAUSE = 0.1


@contextlib.contextmanager
def locked(
    path: str | os.PathLike[str], what: str, *, shared: bool = False, seconds: float = 0.0
) -> Iterator[None]:
    """Holds a lock for the time of the context; the system releases it when the process dies.

    On a system without such locks it does nothing.

    Args:
        path: the file that is locked; it is made where it is missing, and holds the number of the
            process that has it to itself.
        what: what holds it, for the message, such as `"study"`.
        shared: others may share it.
        seconds: how long to wait for it.

    Raises:
        RuntimeError: if another process has it still.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    wanted = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline = time.monotonic() + seconds
    with open(path, "a+") as file:
        while True:
            try:
                fcntl.flock(file, wanted | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() < deadline:
                    time.sleep(_PAUSE)
                    continue
                file.seek(0)
                holder = file.read().strip()
                raise RuntimeError(
                    f"Another {what} runs in {Path(path).parent}"
                    f"{f' (process {holder})' if holder else ''}. Wait for it, or give another "
                    "folder."
                ) from error
        if not shared:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield
