# SPDX-License-Identifier: Apache-2.0
"""Files are written whole or not at all."""

import os
import signal
import subprocess
import sys

import pytest

from tfmot_atmc.utils import files


def test_written_whole_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    target = tmp_path / "model.tflite"
    target.write_bytes(b"old")
    with files.written_whole(target) as partial:
        assert partial.parent == tmp_path and partial.suffix == ".tflite"
        partial.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["model.tflite"]
    plain = tmp_path / "plain"
    plain.touch()
    assert target.stat().st_mode == plain.stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="modes are those of POSIX")
def test_a_file_gets_the_mode_of_the_process_whose_mask_is_never_touched(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("the mask is everyone's"))
            files.write_bytes(tmp_path / "new", b"new")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_failure_on_the_way_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    target = tmp_path / "report.json"
    files.write_json(target, {"a": 1})
    before = target.read_bytes()
    with pytest.raises(OSError, match="no space"), files.written_whole(target) as partial:
        partial.write_bytes(b"half")
        raise OSError("no space left on device")
    with pytest.raises(TypeError):
        files.write_bytes(target, "not bytes")
    assert target.read_bytes() == before == b'{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["report.json"]
    with pytest.raises(FileNotFoundError):
        files.write_bytes(tmp_path / "absent" / "file", b"")


def test_full_disk_is_an_error_and_keeps_the_old_file(tmp_path):
    resource = pytest.importorskip("resource")
    target = tmp_path / "data.bin"
    files.write_bytes(target, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            files.write_bytes(target, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["data.bin"]


def test_killed_process_leaves_the_old_file(tmp_path):
    target = tmp_path / "data.bin"
    files.write_bytes(target, b"old")
    script = (
        "import importlib.util, os, signal\n"
        f"spec = importlib.util.spec_from_file_location('files', {files.__file__!r})\n"
        "files = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(files)\n"  # without the package, whose import takes seconds
        f"with files.written_whole({str(target)!r}) as partial:\n"
        "    partial.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], check=False)
    assert finished.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
