"""`defuse finetune`: check a request, then fine-tune and write the model."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from defuse.data.corpora import load_texts
from defuse.data.examples import make_examples
from defuse.data.text import Plain, QuestionAnswer, as_chat
from defuse.finetune.environment import check_environment
from defuse.finetune.examples import check_lengths
from defuse.finetune.train import FineTuning, OnStep, fine_tune
from defuse.models.decoder import Decoder
from defuse.models.file_identity import file_identity
from defuse.models.load import (
    LoadedModel,
    load_model,
    load_outline,
    resolve_device,
    resolve_dtype,
)
from defuse.models.locate import Source, locate
from defuse.models.lora import adapted_modules, check_installed, check_rank
from defuse.models.save import write_adapter, write_model
from defuse.run_folder import RunFolder
from defuse.store import as_json
from defuse.utils.config import check_fields
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, expanded
from defuse.utils.progress import SILENT, Progress
from defuse.utils.provenance import run_facts


@dataclass(frozen=True)
class Request:
    """A model to fine-tune on `data`: files or hub datasets, as `load_texts` reads them.

    `merge`: write a whole checkpoint instead of a LoRA adapter. `chat`: write the questions with
    the tokenizer's chat template instead of "Question: …\\nAnswer:".
    """

    model: str
    data: tuple[str, ...]
    out: Path
    settings: FineTuning
    merge: bool = False
    chat: bool = False
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Plan:
    """A request whose texts are read and checked; `identity` tells it from all other runs."""

    request: Request
    texts: tuple[Plain, ...]
    identity: Mapping[str, Any]

    @property
    def steps(self) -> int:
        return self.request.settings.steps(len(self.texts))

    @property
    def folder(self) -> RunFolder:
        return RunFolder(
            path=self.request.out,
            option="out",
            verb="finetune",
            identity=self.identity,
            read_identity=lambda record: record["run"],
            checkpoints=("checkpoint-[0-9]*",),
        )


def check(request: Request) -> Plan:
    """Check all that can be checked before the model's weights are read. Raises UsageError."""
    check_writable(request.out, "out")
    source = locate(request.model)
    resolve_device(request.device)
    resolve_dtype(request.dtype)
    settings = request.settings
    if settings.lora is None and request.merge:
        raise UsageError("merge: goes with --lora; leave it out, or give a rank")
    if settings.lora is not None:
        check_installed()
    outline = load_outline(request.model, request.dtype)
    check_environment(outline.model.dtype)
    if settings.lora is not None:
        decoder = Decoder(outline.model)
        modules = adapted_modules(decoder, range(decoder.num_layers), None)
        check_rank(modules, settings.lora, "lora")
    tokenizer = outline.tokenizer
    texts = [text for name in request.data for text in load_texts(name)]
    if request.chat:
        texts = [as_chat(t, tokenizer) if isinstance(t, QuestionAnswer) else t for t in texts]
    check_lengths(make_examples(texts, tokenizer, settings.length), outline.model.config)
    return Plan(request, tuple(texts), _identity(request, texts, source))


def finished(plan: Plan) -> bool:
    """Whether `out` holds this plan's model.

    Raises UsageError if it holds anything else, or if another run's unfinished work is beside it.
    """
    return plan.folder.is_finished()


def run(
    plan: Plan,
    progress: Progress = SILENT,
    processes: Processes = ALONE,
    on_step: OnStep | None = None,
) -> dict[str, Any]:
    """Fine-tune, write the model with its `run.json`, and return the record.

    The output folder appears whole at the end. Until then its neighbour `….partial` holds
    checkpoints; the same plan resumes from the last of them after a kill. `on_step` receives the
    number and loss of every step. Raises UsageError if another process works on the same output.
    """
    request, folder, began = plan.request, plan.folder, time.perf_counter()
    with folder.work(processes) as unfinished:
        progress.start(f"loading {request.model}", 1)
        loaded = load_model(request.model, device=request.device, dtype=request.dtype)
        model, losses = fine_tune(
            loaded,
            plan.texts,
            request.settings,
            unfinished,
            processes=processes,
            progress=progress,
            on_step=on_step,
        )
        record = {
            "run": plan.identity,
            "model_commit": loaded.commit,
            "losses": losses,
            **run_facts(loaded.model, time.perf_counter() - began),
        }
        if processes.is_first:
            progress.start(f"writing {request.out}", 1)
            folder.write(partial(_write_model, model, loaded, request), record, unfinished)
            progress.advance()
        processes.wait()
    return record


def _write_model(model: Any, loaded: LoadedModel, request: Request, folder: Path) -> None:  # noqa: ANN401 (peft's or ours)
    """Write a checkpoint, or an adapter that names its base model."""
    if request.settings.lora is None:
        write_model(model, loaded.tokenizer, folder)
    elif request.merge:
        write_model(model.merge_and_unload(), loaded.tokenizer, folder)
    else:
        write_adapter(model, _base(request.model), loaded.tokenizer, folder)


def _base(name: str) -> tuple[str, str | None]:
    """A model's name and revision, which lead to it from any folder."""
    local = expanded(name, "model")
    path, _, revision = name.partition("@")
    return (str(local.resolve()), None) if local.exists() else (path, revision or None)


def _identity(request: Request, texts: Sequence[Plain], source: Source) -> Mapping[str, Any]:
    """What makes a run the same one, wherever and however often it writes."""
    own = asdict(request)
    del own["out"], own["settings"]["checkpoint_every"]
    digest = hashlib.sha256(repr(list(texts)).encode()).hexdigest()
    return as_json({**own, "texts": digest, **file_identity(source)})
