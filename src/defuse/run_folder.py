"""The output folder of a training run, and the folder beside it for unfinished work.

A run writes its output whole at the end, with a record in `run.json`. Until then the neighbour
`….partial` holds the lock, the run's identity and its checkpoints, from which the same command
resumes. A neighbour that holds anything else is refused, and nothing in it is ever removed. The
record also holds the hash of every file of the output, so that a damaged output does not pass for a
finished one.
"""

import glob
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from defuse.store import as_json, differences
from defuse.utils.distributed import Processes
from defuse.utils.errors import UsageError, caution
from defuse.utils.file_hash import file_hash
from defuse.utils.files import SUFFIX, check_writable, held, new_folder, write_json
from defuse.utils.json_text import parse_json

RECORD, LOCK = "run.json", "lock"
FILES = "files"  # of a record: the SHA-256 of every file of the output, by name
SCHEMA_VERSION = 1
Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """One run's output folder `path`, named by the field or option `option`.

    `identity` is what makes it the same run, wherever and however often it writes. `read_identity`
    takes as much of it as there is from the record of a finished run (those of version 0.1.0 hold
    less). `checkpoints` are patterns of the names of the files and folders to resume from; without
    one of them, an interrupted run leaves nothing behind.
    """

    path: Path
    option: str
    verb: str
    identity: Record
    read_identity: Callable[[Record], Record]
    checkpoints: tuple[str, ...]

    @property
    def partial(self) -> Path:
        """The folder for unfinished work."""
        path = self.path.resolve()
        return path.with_name(f"{path.name}.partial")

    def is_finished(self) -> bool:
        """Whether `path` holds this run, whole.

        If it does, what a kill left of the run's unfinished work is removed. Raises UsageError if
        it holds anything else or cannot be written, if a file of it is missing or damaged, or if
        `partial` holds another run's work.
        """
        if self.path.is_dir() and any(self.path.iterdir()):
            self._check_finished()
            self._remove_left()
            return True
        check_writable(self.path, self.option)
        self._check_partial()
        return False

    def _check_finished(self) -> None:
        found, remedy = self._found(), "name a new folder or remove it"
        if found is None:
            raise UsageError(
                f"{self.option}: {self.path} holds another run or other files; {remedy}"
            )
        wanted = as_json({name: self.identity.get(name) for name in found})
        if other := differences(found, wanted):
            raise UsageError(
                f"{self.option}: {self.path} holds another run, with other {', '.join(other)}; "
                f"{remedy}"
            )
        for name, hashed in self.record().get(FILES, {}).items():
            file = self.path / name
            if not (file.is_file() and file_hash(file) == hashed):
                raise UsageError(
                    f"{self.option}: {file} is not as the run wrote it (missing, cut short or "
                    f"changed); {remedy}"
                )

    def record(self) -> dict[str, Any]:
        """The record of a finished run."""
        return parse_json((self.path / RECORD).read_text(encoding="utf-8"))

    @contextmanager
    def work(self, processes: Processes) -> Iterator[Path]:
        """Hold `partial` as the only run to do so, and remove it when the block ends well.

        Only the first process does anything here. Raises UsageError if another process holds it.
        """
        if not processes.is_first:
            yield self.partial
            return
        self._check_partial()  # before a lock is put there
        with held(self.partial / LOCK, self.option, str(self.path)):
            self._check_partial()
            write_json(self.partial / RECORD, {**self._head(), "run": as_json(self.identity)})
            ended_well = False
            try:
                yield self.partial
                ended_well = True
            finally:
                if ended_well or not self._has_checkpoint():
                    self._remove_partial()

    def write(
        self, fill: Callable[[Path], None], record: Record, within: Path | None = None
    ) -> None:
        """Write the output, which appears whole: what `fill` writes into a folder, and the record.

        `within`: where that folder is until it is whole. Raises UsageError if it cannot be written.
        """
        try:
            with new_folder(self.path, within=within) as folder:
                fill(folder)
                (folder / RECORD).unlink(missing_ok=True)  # of the run that made the model read
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                hashes = {str(path.relative_to(folder)): file_hash(path) for path in files}
                write_json(folder / RECORD, {**self._head(), **record, FILES: hashes})
        except (OSError, SafetensorError) as error:
            raise UsageError(
                f"{self.option}: {self.path} cannot be written ({error}); make room and run the "
                "same command again"
            ) from error

    def _head(self) -> Record:
        return {"schema_version": SCHEMA_VERSION, "verb": self.verb}

    def _found(self) -> Record | None:
        """The identity of the run that `path` holds; None if it holds none."""
        try:
            return as_json(self.read_identity(self.record()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _check_partial(self) -> None:
        """Raise UsageError unless `partial` is absent, or holds this run's work and no more."""
        path, remedy = self.partial / RECORD, "finish or remove it, or name a new folder"
        if self.partial.is_symlink():
            raise UsageError(
                f"{self.option}: {self.partial}, where unfinished work goes, is a link; remove it, "
                "or name a new folder"
            )
        if not path.exists():
            self._check_own()
            return
        try:
            record = parse_json(path.read_text(encoding="utf-8"))
            verb, found = record.get("verb", "finetune"), dict(record["run"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{self.option}: {path} is damaged, or no record of a run; move or remove "
                f"{self.partial}, or name a new folder"
            ) from error
        if verb != self.verb:
            raise UsageError(
                f"{self.option}: {self.partial} holds the beginning of a run of `defuse {verb}`; "
                f"{remedy}"
            )
        if other := differences(found, as_json(self.identity)):
            raise UsageError(
                f"{self.option}: {self.partial} holds the beginning of a run with other "
                f"{', '.join(other)}; {remedy}"
            )
        self._check_own()

    def _remove_left(self) -> None:
        """Remove what a kill at the very end of this run left of its unfinished work."""
        if not self.partial.is_dir():
            return
        try:
            self._check_partial()
        except UsageError as error:  # of another run, or damaged: it stays
            caution(f"{error}")
            return
        with (
            suppress(OSError, UsageError),  # in use
            held(self.partial / LOCK, self.option, str(self.path)),
        ):
            self._remove_partial()

    def _has_checkpoint(self) -> bool:
        return any(any(self.partial.glob(pattern)) for pattern in self.checkpoints)

    def _own(self) -> set[Path]:
        """What runs write into `partial`; temporary files and folders are hidden."""
        names = (RECORD, glob.escape(self.path.resolve().name), *self.checkpoints)
        patterns = (RECORD, LOCK, *self.checkpoints, *(f".{name}.*{SUFFIX}" for name in names))
        return {path for pattern in patterns for path in self.partial.glob(pattern)}

    def _check_own(self) -> None:
        """Raise UsageError for what no run wrote into `partial`."""
        if not self.partial.is_dir():
            return
        if strange := sorted(set(self.partial.iterdir()) - self._own()):
            raise UsageError(
                f"{self.option}: {strange[0]} is not of this run, but {self.partial} is where its "
                "unfinished work goes; move it, or name a new folder"
            )

    def _remove_partial(self) -> None:
        for path in self._own():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if self.partial.is_dir() and not any(self.partial.iterdir()):
            self.partial.rmdir()
