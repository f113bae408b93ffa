# SPDX-License-Identifier: Apache-2.0
"""Writing files so that none is ever half-written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a name beside a file to write to, and moves it to its place if all went well.

    Args:
        path: where the file shall be; its folder must exist.

    Yields:
        A hidden, empty file in the same folder, with the same ending. It is flushed to the disk and
        renamed at the end of the block; after an exception it is removed, and an older file at
        `path` is left as it was.

    Raises:
        OSError: if it cannot be written.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix
    )
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)  # mkstemp makes files that only their owner may read
        os.umask(umask)
        os.chmod(partial, 0o666 & ~umask)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file, whole or not at all; see `written_whole`."""
    with written_whole(path) as partial:
        partial.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2, default=str) + "\n").encode())
