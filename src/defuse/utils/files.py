"""Files appear whole or not at all."""

import errno
import glob
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from defuse.utils.errors import UsageError

try:
    import fcntl
except ImportError:  # on Windows temporaries are not locked, and those of a kill stay
    fcntl = None

SUFFIX = ".part"  # of temporary files and folders, whose names are .NAME.XXXXXXXX.part
# The temporary name of a file is longer than its own, and may be too long for the file system.
PROBE = f".{{}}.12345678{SUFFIX}"


def expanded(name: str, field: str) -> Path:
    """A path whose ~ is a home. Raises UsageError, naming `field`, for an unknown user's."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{field}: {name} does not exist ({error}); give its whole path"
        ) from error


def check_ends(path: Path) -> None:
    """Raise UsageError for a device, such as /dev/zero, which may never end."""
    if path.is_char_device():
        raise UsageError(f"{path}: is a device and no file; give a file")


def read_utf8(path: Path) -> str:
    """A text file, without a byte-order mark. Raises UsageError for what cannot be read."""
    check_ends(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError, too
        raise UsageError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def check_name(path: Path, field: str) -> None:
    """Raise UsageError, naming `field`, for a name that no file can have."""
    try:
        (path.with_name(PROBE.format(path.name)) if path.name else path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise UsageError(f"{field}: {path} cannot be a file's name ({reason})") from error


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
        # A name of a file may hold bytes that are no text; in JSON the escape means the same.
        file.write(text.encode("utf-8", "backslashreplace"))


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
    """The name of a file beside `path` to write; it takes `path`'s place if the block ends well.

    What a kill left half-written there is removed. An OSError names `path`.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_temporaries(path)
        with _temporary_file(path) as temporary:
            yield temporary
            flush(temporary)  # else a power cut could leave the name without the bytes
            _set_mode(temporary)
            temporary.replace(path)
            flush(path.parent)


@contextmanager
def new_folder(path: Path, within: Path | None = None) -> Iterator[Path]:
    """A folder beside `path` to fill; it takes `path`'s place only if the block ends well.

    A link to a folder is followed. `within`: a folder on the same file system to fill it in
    instead. What a kill left half-written there is removed. Raises FileExistsError when `path`
    already holds something.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    place = (within or path.parent) / path.name
    remove_temporaries(place)
    with _temporary_folder(place) as temporary:
        yield temporary
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(path)
        for part in (*temporary.rglob("*"), temporary):
            _set_mode(part)
            flush(part)
        temporary.replace(path)
        flush(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError without a file's name, such as that of a full disk, the name `path`."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def full_disk(error: BaseException) -> OSError | None:
    """The full disk (or quota, or bound on a file's size) behind an error, if that is its cause."""
    cause: BaseException | None = error
    while cause is not None:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            if isinstance(cause, OSError) and cause.errno == number:
                return cause
            # safetensors' error has only the text.
            if f"(os error {number})" in str(cause):
                return OSError(number, os.strerror(number))
        cause = cause.__cause__
    return None


def remove_temporaries(path: Path) -> None:
    """Remove what killed processes left half-written beside `path`, and nothing in use."""
    if fcntl is None:
        return
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{SUFFIX}"):
        with suppress(OSError), _locked(left):  # in use, or gone
            _remove(left)


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(SUFFIX, f".{path.name}.", path.parent)
    os.close(handle)
    with _in_use(Path(name)) as temporary:
        yield temporary


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    with _in_use(Path(tempfile.mkdtemp(SUFFIX, f".{path.name}.", path.parent))) as temporary:
        yield temporary


@contextmanager
def _in_use(temporary: Path) -> Iterator[Path]:
    """Lock a temporary file or folder, which a kill lets go of; remove it after an error."""
    with _locked(temporary):
        try:
            yield temporary
        except BaseException:
            _remove(temporary)
            raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file or folder, as far as the system can. Raises OSError if another process does."""
    if fcntl is None:
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    if path.is_dir() and fcntl is None:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _set_mode(path: Path) -> None:
    """Give a new file or folder the usual mode; temporary ones are for their owner alone."""
    if path.is_dir():
        path.chmod(0o777 & ~_UMASK)
    elif path.stat().st_nlink == 1:  # not a hard link to a file of the user's
        path.chmod(0o666 & ~_UMASK)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()  # read once: reading it sets it for a moment, in all threads
