"""Files appear whole or not at all, and what a kill left is removed by the next writer."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from defuse.utils.errors import UsageError
from defuse.utils.file_hash import file_hash
from defuse.utils.files import (
    check_name,
    expanded,
    full_disk,
    new_file,
    new_folder,
    read_utf8,
    write_text,
)
from defuse.utils.jsonl import append_line
from tests.helpers.bad_disk import file_limit

KILLED = """
import os, signal, sys
from pathlib import Path
from defuse.utils.files import new_folder, new_path
path = Path(sys.argv[1])
with (new_folder if path.suffix == "" else new_path)(path) as temporary:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def left_by_a_kill(path: Path) -> list[Path]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, str(path)]
    subprocess.run(command, env=environment, check=False)  # noqa: S603
    return [each for each in path.parent.iterdir() if each.name.startswith(".")]


def test_what_a_kill_left_is_removed_by_the_next_writer_of_the_same_name(tmp_path: Path) -> None:
    file, folder = tmp_path / "result.json", tmp_path / "model"
    assert len(left_by_a_kill(file)) == 1
    assert len(left_by_a_kill(folder)) == 2
    mine = tmp_path / ".result.json.original"
    mine.touch()
    write_text(file, "whole")
    with new_folder(folder) as temporary:
        (temporary / "weights").touch()
    assert sorted(tmp_path.iterdir()) == [mine, folder, file]


def test_the_temporary_of_a_writer_at_work_stays(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with new_file(path) as first:
        write_text(path, "second")
        first.write(b"first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_modes_come_from_the_umask(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    (tmp_path / "linked").touch(0o600)
    with new_folder(tmp_path / "folder") as folder:
        (folder / "weights").touch(0o600)
        (folder / "shared").hardlink_to(tmp_path / "linked")
    (tmp_path / "plain").touch()
    (tmp_path / "directory").mkdir()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes["file"] == modes["weights"] == modes["plain"]
    assert modes["folder"] == modes["directory"]
    assert modes["linked"] == 0o600  # a file of the user's


def test_a_full_disk_is_said_of_the_file_that_did_not_fit(tmp_path: Path) -> None:
    path, log = tmp_path / "result.json", tmp_path / "log.jsonl"
    with file_limit(100), pytest.raises(OSError, match="File too large") as refusal:
        write_text(path, "x" * 1000)
    assert refusal.value.errno == errno.EFBIG
    assert refusal.value.filename == str(path)
    assert not list(tmp_path.iterdir())
    with file_limit(100), pytest.raises(OSError, match="File too large") as refusal:
        append_line(log, {}, {"text": "x" * 1000})
    assert refusal.value.filename == str(log)


def test_a_name_is_refused_early_where_its_temporary_would_not_fit(tmp_path: Path) -> None:
    check_name(tmp_path / ("x" * 200), "output")
    with pytest.raises(UsageError, match=r"output: .* cannot be a file's name"):
        check_name(tmp_path / ("x" * 250), "output")


def test_a_device_and_an_unknown_home_are_refused() -> None:
    with pytest.raises(UsageError, match="/dev/zero: is a device and no file"):
        read_utf8(Path("/dev/zero"))
    with pytest.raises(UsageError, match="data: ~nobody-here/x does not exist"):
        expanded("~nobody-here/x", "data")
    assert expanded("~/x", "data") == Path.home() / "x"


def test_a_zero_byte_is_no_part_of_a_name() -> None:
    with pytest.raises(UsageError, match=r"output: .* cannot be a file's name"):
        check_name(Path("a\0b"), "output")
    with pytest.raises(UsageError, match="cannot be read as UTF-8 text"):
        read_utf8(Path("a\0b"))


def test_the_hash_of_a_file_follows_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(bytes(2**20))
    os.utime(path, (1, 1))  # as old as files of models are
    before = file_hash(path)
    assert (tmp_path / "cache" / "defuse" / "hashes.json").exists()
    assert file_hash(path) == before
    with path.open("r+b") as file:
        file.write(b"\1")
    assert file_hash(path) != before
    (tmp_path / "cache" / "defuse" / "hashes.json").write_text("no JSON")
    os.utime(path, (1, 1))
    assert file_hash(path) != before


def test_a_full_disk_is_told_from_other_errors_wherever_it_is_the_cause() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "state")
    refusal = UsageError("output: cannot be written")
    refusal.__cause__ = full
    assert full_disk(full) is full_disk(refusal) is full
    found = full_disk(SafetensorError("I/O error: File too large (os error 27)"))
    assert found is not None
    assert found.errno == errno.EFBIG
    assert full_disk(FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert full_disk(ValueError("os error")) is None
