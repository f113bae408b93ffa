# SPDX-License-Identifier: Apache-2.0
"""Flash and RAM of a written C file, as a cross-compiler for Cortex-M makes it."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["CPUS", "Footprint", "allowed_footprint", "measure_footprint"]

CPUS = {
    "cortex-m0plus": ("-mcpu=cortex-m0plus",),
    "cortex-m4": ("-mcpu=cortex-m4", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16"),
}
_COMPILER = "arm-none-eabi-gcc"
_SIZE = "arm-none-eabi-size"
_FLAGS = ("-mthumb", "-std=c99", "-ffreestanding", "-fcallgraph-info=su,da", "-c")
# More than any model here needed.
_CODE_ALLOWANCE, _STACK_ALLOWANCE = 8192, 512
_NODE = re.compile(r'node: \{ title: "([^"]+)" label: "[^"]*?(\d+) bytes \((\w+)')
_EDGE = re.compile(r'edge: \{ sourcename: "([^"]+)" targetname: "([^"]+)"')


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Memory of a C file on one core.

    Attributes:
        cpu: the core, a key of `CPUS`.
        optimize: the compiler's level, such as `"-O2"`.
        flash: bytes of code and constants.
        static: bytes of memory in use from start to end.
        stack: bytes of stack of the deepest chain of calls; None where the compiler does not tell.
    """

    cpu: str
    optimize: str
    flash: int
    static: int
    stack: int | None

    @property
    def ram(self) -> int:
        """Static memory and stack together."""
        return self.static + (self.stack or 0)


def measure_footprint(
    path: str | os.PathLike[str], cpu: str = "cortex-m4", optimize: str = "-O2"
) -> Footprint | None:
    """Compiles a C file for a core and reads its sizes.

    Args:
        path: the C file; its header lies beside it.
        cpu: one of `CPUS`.
        optimize: the compiler's level.

    Returns:
        A `Footprint`, or None where `arm-none-eabi-gcc` is not installed.

    Raises:
        ValueError: if `cpu` is unknown or the file does not compile.
    """
    if cpu not in CPUS:
        raise ValueError(f"`cpu` must be one of {tuple(CPUS)}. Received {cpu!r}.")
    compiler, size = shutil.which(_COMPILER), shutil.which(_SIZE)
    if compiler is None or size is None:
        return None
    with tempfile.TemporaryDirectory(prefix="atmc-") as folder:
        target = Path(folder) / "model.o"
        command = [compiler, *_FLAGS, optimize, *CPUS[cpu], os.fspath(path), "-o", str(target)]
        outcome = subprocess.run(command, capture_output=True, text=True)
        if outcome.returncode:
            raise ValueError(f"{os.fspath(path)!r} does not compile:\n{outcome.stderr[:2000]}")
        listed = subprocess.run([size, str(target)], capture_output=True, text=True, check=True)
        text, data, bss = (int(v) for v in listed.stdout.splitlines()[1].split()[:3])
        graph = target.with_suffix(".ci")
        stack = _deepest(graph.read_text()) if graph.is_file() else None
    return Footprint(cpu, optimize, text + data, data + bss, stack)


def allowed_footprint(cpu: str, constants: int, static: int) -> Footprint:
    """Returns what is allowed for where no cross-compiler measures it: code, and a stack.

    Args:
        cpu: the core.
        constants: bytes of weights and tables.
        static: bytes of static memory.
    """
    return Footprint(cpu, "(estimated)", constants + _CODE_ALLOWANCE, static, _STACK_ALLOWANCE)


def _deepest(graph: str) -> int | None:
    """The most stack of any chain of calls."""
    own = {name: int(size) for name, size, _ in _NODE.findall(graph)}
    calls: dict[str, list[str]] = {}
    for caller, called in _EDGE.findall(graph):
        calls.setdefault(caller, []).append(called)

    def depth(name: str, above: tuple[str, ...] = ()) -> int:
        below = [depth(n, (*above, name)) for n in calls.get(name, ()) if n not in (*above, name)]
        return own.get(name, 0) + max(below, default=0)

    return max((depth(name) for name in own), default=None)
