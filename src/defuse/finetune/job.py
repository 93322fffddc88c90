"""`defuse finetune`: everything checked first, then trained, then written whole."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from defuse.corpora import load_texts
from defuse.errors import UsageError
from defuse.files import check_writable, held, new_folder, write_json
from defuse.finetune.examples import make_examples
from defuse.finetune.train import FineTuning, OnStep, fine_tune
from defuse.models import (
    LoadedModel,
    load_model,
    load_tokenizer,
    locate,
    resolve_device,
    resolve_dtype,
    write_model,
)
from defuse.processes import Processes, join_processes
from defuse.provenance import peak_memory_bytes, versions
from defuse.texts import Plain, as_chat

RECORD = "run.json"


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
    def work(self) -> Path:
        """Where checkpoints lie until the run is finished."""
        return self.out.absolute().parent / f".{self.out.name}.training"


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
    if settings.lora is not None and find_spec("peft") is None:
        raise UsageError("lora: needs the peft package; pip install 'defuse[peft]'")
    tokenizer = load_tokenizer(source)
    texts = [text for name in order.data for text in load_texts(name)]
    texts = as_chat(texts, tokenizer) if order.chat else texts
    make_examples(texts, tokenizer, settings.length)
    return Job(order, tuple(texts), _record(order, texts))


def finished(job: Job) -> bool:
    """Whether `out` holds this job's model. Raises UsageError if it holds anything else.

    So it does for checkpoints of another run beside it.
    """
    out, work = job.order.out, job.order.work
    if out.is_dir() and any(out.iterdir()):
        if _recorded(out) == job.record:
            return True
        raise UsageError(f"out: {out} holds another run or other files; name a new folder")
    if work.is_dir() and _recorded(work) not in (None, job.record):
        raise UsageError(f"out: {work} holds another, unfinished run; remove it or name a new out")
    return False


def execute(job: Job, on_step: OnStep = lambda _, __: None) -> dict[str, Any]:
    """Train, write the model with its `run.json`, and return what stands in there.

    The output folder appears whole at the end; until then checkpoints lie in a hidden folder beside
    it, and the same call goes on from the last of them after a kill. Raises UsageError if another
    process is at it.
    """
    order = job.order
    processes = join_processes(resolve_device(order.device))
    lock = held(order.work / "lock", "out", str(order.out)) if processes.is_first else nullcontext()
    with lock:
        record = _train(job, processes, on_step)
    if processes.is_first:
        shutil.rmtree(order.work, ignore_errors=True)
    return record


def _train(job: Job, processes: Processes, on_step: OnStep) -> dict[str, Any]:
    order, began = job.order, time.perf_counter()
    if processes.is_first:
        write_json(order.work / RECORD, {"run": job.record})
    loaded = load_model(order.model, device=order.device, dtype=order.dtype)
    model, losses = fine_tune(
        loaded, job.texts, order.settings, order.work, processes=processes, on_step=on_step
    )
    record = {
        "run": job.record,
        "model_commit": getattr(loaded.model.config, "_commit_hash", None),
        "losses": losses,
        "seconds": time.perf_counter() - began,
        "peak_memory_bytes": peak_memory_bytes(loaded.model.device),
        "device": str(loaded.model.device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "versions": versions(),
    }
    if processes.is_first:
        try:
            with new_folder(order.out) as folder:
                _write(model, loaded, order, folder)
                write_json(folder / RECORD, record)
        except OSError as error:
            raise UsageError(f"out: {order.out} cannot be written ({error})") from error
    processes.wait()
    return record


def _write(model: Any, loaded: LoadedModel, order: Order, folder: Path) -> None:  # noqa: ANN401
    """A checkpoint, or an adapter that names its base model."""
    if order.settings.lora is None or order.merge:
        merged = model if order.settings.lora is None else model.merge_and_unload()
        write_model(merged, loaded.tokenizer, folder)
        return
    path, _, revision = order.model.partition("@")
    local = Path(order.model).expanduser()
    (config,) = model.peft_config.values()
    config.base_model_name_or_path = str(local.absolute()) if local.exists() else path
    config.revision = revision or None
    model.save_pretrained(str(folder))
    loaded.tokenizer.save_pretrained(folder)


def _record(order: Order, texts: Sequence[Plain]) -> Mapping[str, Any]:
    """What makes a run the same one, wherever its output is put, as JSON gives it back."""
    own = {key: value for key, value in asdict(order).items() if key != "out"}
    digest = hashlib.sha256(repr(list(texts)).encode()).hexdigest()
    return json.loads(json.dumps({**own, "texts": digest}))


def _recorded(folder: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
