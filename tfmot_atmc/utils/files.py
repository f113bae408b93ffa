# SPDX-License-Identifier: Apache-2.0
"""Writing files so that none is ever half-written."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
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
    partial = target.with_name(f".{target.stem}.{secrets.token_hex(8)}{target.suffix}")
    partial.touch(exist_ok=False)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
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
