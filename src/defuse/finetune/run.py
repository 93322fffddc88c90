"""`defuse finetune`: everything checked first, then trained, then written whole."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from defuse.data.corpora import load_texts
from defuse.data.text import Plain, QuestionAnswer, as_chat
from defuse.finetune.examples import make_examples
from defuse.finetune.train import FineTuning, OnStep, fine_tune
from defuse.models.load import (
    LoadedModel,
    load_model,
    load_tokenizer,
    locate,
    resolve_device,
    resolve_dtype,
)
from defuse.models.lora import check_installed
from defuse.models.save import write_adapter, write_model
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, held, new_folder, write_json
from defuse.utils.provenance import peak_memory_bytes, versions

RECORD, LOCK = "run.json", "lock"


@dataclass(frozen=True)
class Order:
    """What is taught to which model; `data` are files or hub datasets, as `load_texts` reads them.

    `merge`: write a whole checkpoint instead of a LoRA adapter. `chat`: ask by the tokenizer's chat
    template instead of "Question: …\\nAnswer:".
    """

    model: str
    data: tuple[str, ...]
    out: Path
    settings: FineTuning
    merge: bool = False
    chat: bool = False
    device: str = "auto"
    dtype: str = "auto"

    @property
    def partial(self) -> Path:
        """Where checkpoints lie until the run is finished."""
        out = self.out.resolve()
        return out.with_name(f"{out.name}.partial")


@dataclass(frozen=True)
class Job:
    """An order with its texts read and checked; `record` tells it from all others."""

    order: Order
    texts: tuple[Plain, ...]
    record: Mapping[str, Any]

    @property
    def steps(self) -> int:
        return self.order.settings.steps(len(self.texts))


def check(order: Order) -> Job:
    """Everything that can be refused before the model's weights are read. Raises UsageError."""
    check_writable(order.out, "out")
    source = locate(order.model)
    resolve_device(order.device)
    resolve_dtype(order.dtype)
    settings = order.settings
    if settings.lora is None and order.merge:
        raise UsageError("merge: goes with --lora; leave it out, or give a rank")
    if settings.lora is not None:
        check_installed()
    tokenizer = load_tokenizer(source)
    texts = [text for name in order.data for text in load_texts(name)]
    if order.chat:
        texts = [as_chat(t, tokenizer) if isinstance(t, QuestionAnswer) else t for t in texts]
    make_examples(texts, tokenizer, settings.length)
    return Job(order, tuple(texts), _record(order, texts))


def finished(job: Job) -> bool:
    """Whether `out` holds this job's model.

    Raises UsageError if it holds anything else, or if another run waits beside it to be finished.
    """
    out, partial = job.order.out, job.order.partial
    if out.is_dir() and any(out.iterdir()):
        if _recorded(out) == job.record:
            return True
        raise UsageError(f"out: {out} holds another run or other files; name a new folder")
    if _recorded(partial) not in (None, job.record):
        raise UsageError(
            f"out: {partial} holds another, unfinished run; remove it or name a new out"
        )
    return False


def execute(
    job: Job, on_step: OnStep = lambda _, __: None, processes: Processes = ALONE
) -> dict[str, Any]:
    """Train, write the model with its `run.json`, and return what stands in there.

    The output folder appears whole at the end. Until then its neighbour `….partial` holds
    checkpoints, from the last of which the same job goes on after a kill. Raises UsageError if
    another process works on the same output.
    """
    order, began = job.order, time.perf_counter()
    with _workplace(job, processes):
        loaded = load_model(order.model, device=order.device, dtype=order.dtype)
        model, losses = fine_tune(
            loaded, job.texts, order.settings, order.partial, processes=processes, on_step=on_step
        )
        record = {
            "run": job.record,
            "model_commit": loaded.commit,
            "losses": losses,
            "seconds": time.perf_counter() - began,
            "peak_memory_bytes": peak_memory_bytes(loaded.model.device),
            "device": str(loaded.model.device),
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "versions": versions(),
        }
        if processes.is_first:
            _write(model, loaded, order, record)
        processes.wait()
    return record


@contextmanager
def _workplace(job: Job, processes: Processes) -> Iterator[None]:
    """Checkpoints' folder, held by the first process; gone when the run has ended well."""
    order = job.order
    if not processes.is_first:
        yield
        return
    with held(order.partial / LOCK, "out", str(order.out)):
        write_json(order.partial / RECORD, {"run": job.record})
        yield
    shutil.rmtree(order.partial, ignore_errors=True)


def _write(model: Any, loaded: LoadedModel, order: Order, record: Mapping[str, Any]) -> None:  # noqa: ANN401 (peft's or ours)
    """A checkpoint, or an adapter that names its base model."""
    try:
        with new_folder(order.out, within=order.partial) as folder:
            if order.settings.lora is None:
                write_model(model, loaded.tokenizer, folder)
            elif order.merge:
                write_model(model.merge_and_unload(), loaded.tokenizer, folder)
            else:
                write_adapter(model, _base(order.model), loaded.tokenizer, folder)
            write_json(folder / RECORD, record)
    except OSError as error:
        raise UsageError(f"out: {order.out} cannot be written ({error})") from error


def _base(name: str) -> tuple[str, str | None]:
    """A model's name and revision, to be found again from anywhere."""
    local = Path(name).expanduser()
    path, _, revision = name.partition("@")
    return (str(local.resolve()), None) if local.exists() else (path, revision or None)


def _record(order: Order, texts: Sequence[Plain]) -> Mapping[str, Any]:
    """What makes a run the same one, wherever and however often it writes, as JSON gives it."""
    own = asdict(order)
    del own["out"], own["settings"]["checkpoint_every"]
    digest = hashlib.sha256(repr(list(texts)).encode()).hexdigest()
    return json.loads(json.dumps({**own, "texts": digest}))


def _recorded(folder: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
