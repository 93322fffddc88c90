"""Files appear whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from defuse.utils.errors import UsageError


def read_utf8(path: Path) -> str:
    """A text file, without a byte-order mark. Raises UsageError for what cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def check_name(path: Path, field: str) -> None:
    """Raise UsageError, naming `field`, for a name that no file can have."""
    try:
        path.exists()
    except OSError as error:
        raise UsageError(f"{field}: {path} cannot be a file's name ({error.strerror})") from error


def check_writable(path: Path, field: str) -> None:
    """Raise UsageError, naming `field`, if nothing could be made within the folder `path`."""
    check_name(path, field)
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise UsageError(f"{field}: {path} cannot be written ({existing}); choose another place")


@contextmanager
def held(lock: Path, field: str, what: str) -> Iterator[None]:
    """Hold the file `lock` as the only process to do so; the system lets go of it after a kill.

    Raises UsageError, naming `field` and `what` is in use, if another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = FileLock(lock)
    try:
        handle.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"{field}: {what} is in use by another process; wait for it, or name another place"
        ) from error
    try:
        yield
    finally:
        handle.release()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that no reader, and no kill, ever sees half of it."""
    with new_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 (anything json can hold)
    """Write `value` as indented JSON, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file beside `path` to fill; it takes `path`'s place only if the block ends well."""
    with new_path(path) as temporary, temporary.open("wb") as file:
        yield file


@contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """The name of a file beside `path` to write; it takes `path`'s place if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        os.close(handle)
        yield temporary
        _flush(temporary)  # else a power cut could leave the name without the bytes
        temporary.chmod(0o644)  # mkstemp's files are for their owner alone
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_folder(path: Path, within: Path | None = None) -> Iterator[Path]:
    """A folder beside `path` to fill; it takes `path`'s place only if the block ends well.

    A link to a folder is followed. `within`: a folder on the same file system to fill it in
    instead. Raises FileExistsError when `path` already holds something.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=within or path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(path)
        temporary.chmod(0o755)
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
