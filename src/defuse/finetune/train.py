"""Fine-tuning with transformers' Trainer: all weights or LoRA, resumable.

The Trainer receives ready batches. Each is divided into as many parts as there are processes times
steps of accumulation, and the loss is a mean over the tokens of the whole batch. So the number of
processes does not change the result.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from defuse.data.examples import Example, make_examples
from defuse.data.given import given_texts
from defuse.data.text import Text
from defuse.finetune.environment import check_environment
from defuse.finetune.examples import check_lengths, collate, epoch_batches
from defuse.models.decoder import Decoder
from defuse.models.freeze import cache_setting_kept, generators_kept
from defuse.models.load import LoadedModel, quiet
from defuse.models.lora import LoRA, adapted_modules, add_factors, factors
from defuse.utils.config import Count, Length, Natural, NotNegative, Positive, check_fields
from defuse.utils.distributed import ALONE, Processes
from defuse.utils.errors import UsageError, caution, require
from defuse.utils.file_hash import file_hash
from defuse.utils.files import flush, remove_temporaries, write_json
from defuse.utils.json_text import parse_json
from defuse.utils.progress import SILENT, Progress

SEAL = "checksums.json"  # in a checkpoint: the SHA-256 of its files
OnStep = Callable[[int, float], None]


@dataclass(frozen=True)
class FineTuning:
    """AdamW whose rate rises over the first epoch and then falls to 0, as for TOFU.

    `batch_size`: texts of a step, over all processes. `accumulate`: parts that a step is computed
    in, to save memory. Texts are truncated to `length` tokens. `lora`: the rank of LoRA's factors
    for all linear layers of the blocks (α = 2 · rank); None trains every weight.
    `checkpoint_every`: steps between checkpoints; None is an epoch, 0 is none. The defaults are
    TOFU's (2401.06121) for Llama-2-7B.
    """

    epochs: Count = 5
    learning_rate: Positive = 1e-5
    batch_size: Count = 32
    length: Length = 512
    lora: Count | None = None
    weight_decay: NotNegative = 0.01
    accumulate: Count = 1
    checkpoint_every: Natural | None = None
    seed: int = 42

    def __post_init__(self) -> None:
        check_fields(self)

    def steps(self, texts: int) -> int:
        """Steps over all epochs."""
        return self.epochs * -(-texts // self.batch_size)


def fine_tune(
    loaded: LoadedModel,
    texts: Sequence[Text],
    settings: FineTuning,
    folder: Path,
    *,
    processes: Processes = ALONE,
    on_step: OnStep | None = None,
    progress: Progress = SILENT,
) -> tuple[Any, list[float]]:
    """Fine-tune `loaded`'s model on `texts`; returns it, or its LoRA adapter, and all losses.

    The model is changed in place. Trained weights of a bfloat16 model are float32 during training;
    only the passes are in bfloat16. `folder` holds checkpoints, from which the same call resumes.
    `on_step` receives the number and loss (nats per counted token) of every step. Raises UsageError
    for float16, for more parts than a batch has texts, and for a loss that is not finite.
    """
    texts = given_texts(texts, "texts")
    precision = loaded.model.dtype
    check_environment(precision)
    remedy = "loses small gradients in training: use bfloat16 or float32"
    require(precision != torch.float16, "dtype", "float16", remedy)
    examples = make_examples(texts, loaded.tokenizer, settings.length)
    check_lengths(examples, loaded.model.config)
    batches = _all_batches(examples, settings, processes.count * settings.accumulate)
    arguments = _arguments(settings, len(texts), loaded.model, folder)
    with quiet(), generators_kept(), cache_setting_kept(loaded.model):
        model = _trainable(loaded.model, settings)
        trainer = _Trainer(
            model=model,
            args=arguments,
            train_dataset=batches,
            data_collator=_Collator(_pad_token(loaded)),
            callbacks=[_Report(on_step, progress), _Sealed()],
        )
        trainer.remove_callback(PrinterCallback)
        progress.start("fine-tuning", settings.steps(len(texts)))
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return (model if settings.lora else model.to(precision)).eval(), losses


def last_checkpoint(folder: Path) -> str | None:
    """The latest whole checkpoint in `folder`; a damaged one is passed over with a caution.

    One without a seal was not finished. Raises UsageError where all checkpoints are damaged.
    """
    seals = folder.glob(f"checkpoint-*/{SEAL}")  # written last
    found = sorted((s.parent for s in seals), key=lambda p: int(p.name.rpartition("-")[2]))
    damaged = []
    for checkpoint in reversed(found):
        if (file := _damaged_file(checkpoint)) is None:
            for path in damaged:
                caution(f"{path} is damaged; the run resumes from the checkpoint before it")
            return str(checkpoint)
        damaged.append(file)
    if damaged:
        raise UsageError(f"out: {damaged[0]} is damaged; remove {folder} to start again")
    return None


def _damaged_file(checkpoint: Path) -> Path | None:
    """A file that is not as it was written."""
    seal = checkpoint / SEAL
    try:
        hashes = parse_json(seal.read_text(encoding="utf-8"))
        wrong = (name for name, digest in hashes.items() if _hash(checkpoint / name) != digest)
        return next((checkpoint / name for name in wrong), None)
    except (OSError, ValueError, AttributeError):
        return seal


def _hash(path: Path) -> str | None:
    return file_hash(path) if path.is_file() else None


class _Batches(Dataset[list[Example]]):
    """Parts of batches, as items of the Trainer's dataset."""

    def __init__(self, parts: Sequence[list[Example]]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> list[Example]:
        return self.parts[index]


def _all_batches(examples: Sequence[Example], settings: FineTuning, parts: int) -> _Batches:
    lengths = [len(example.ids) for example in examples]
    batches = [
        [examples[place] for place in batch]
        for epoch in range(settings.epochs)
        for batch in epoch_batches(lengths, settings.batch_size, settings.seed, epoch)
    ]
    smallest = min(map(len, batches))
    if smallest < parts:
        raise UsageError(
            f"batch_size: {settings.batch_size} makes batches of {smallest} texts for {parts} "
            "processes and steps of accumulation; raise it, or lower accumulate"
        )
    return _Batches([batch[part::parts] for batch in batches for part in range(parts)])


def _arguments(
    settings: FineTuning, texts: int, model: PreTrainedModel, folder: Path
) -> TrainingArguments:
    per_epoch = settings.steps(texts) // settings.epochs
    every = per_epoch if settings.checkpoint_every is None else settings.checkpoint_every
    on_cpu = model.device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,  # a part of a batch
        gradient_accumulation_steps=settings.accumulate,
        num_train_epochs=1,  # of the list of all epochs' batches
        train_sampling_strategy="sequential",
        learning_rate=settings.learning_rate,
        warmup_steps=per_epoch if settings.epochs > 1 else 0,
        weight_decay=settings.weight_decay,
        bf16=model.dtype == torch.bfloat16,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        save_strategy="steps" if every else "no",
        save_steps=max(1, every),
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    # One process uses one device; a launcher starts several processes.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def _trainable(model: PreTrainedModel, settings: FineTuning) -> Any:  # noqa: ANN401 (peft's or ours)
    """The model, or its adapter, with trained weights in float32 at least."""
    halved = model.dtype == torch.bfloat16
    if settings.lora is None:
        return (model.float() if halved else model).requires_grad_(True)
    decoder = Decoder(model)
    modules = adapted_modules(decoder, range(decoder.num_layers), None)
    adapter = add_factors(model, modules, LoRA(settings.lora, 2 * settings.lora), settings.seed)
    for factor in factors(model).values():
        factor.data = factor.data.float() if halved else factor.data
    return adapter


def _pad_token(loaded: LoadedModel) -> int:
    pad = loaded.tokenizer.pad_token_id
    return pad if isinstance(pad, int) else 0  # any token will do: it is masked


@dataclass(frozen=True)
class _Collator:
    pad_token_id: int

    def __call__(self, parts: Sequence[Sequence[Example]]) -> dict[str, torch.Tensor]:
        return collate([example for part in parts for example in part], self.pad_token_id)


class _Trainer(Trainer):
    """The Trainer, with one sentence for a checkpoint that cannot be written."""

    def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        try:
            super()._save_checkpoint(*arguments, **named)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"out: the checkpoint after {self.state.global_step} steps cannot be written to "
                f"{self.args.output_dir} ({reason}); make room and run the same command again: it "
                "resumes from the checkpoint before, which is intact"
            ) from error


class _Sealed(TrainerCallback):
    """Writes the hashes of a checkpoint's files beside them, so that damage is noticed."""

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,  # noqa: ANN401
    ) -> None:
        folder = Path(str(args.output_dir), f"checkpoint-{state.global_step}")
        if state.is_world_process_zero:
            remove_temporaries(folder / SEAL)  # of a kill, when this folder was written before
            # Other processes may still be writing the states of their random generators.
            found = [path for path in sorted(folder.iterdir()) if not path.match("rng_state_*")]
            files = [path for path in found if path.is_file()]
            for path in files:
                flush(path)  # else a power cut could leave the seal without the bytes
            write_json(folder / SEAL, {path.name: _hash(path) for path in files})


class _Report(TrainerCallback):
    """Reports every step, and stops at a loss that is not finite."""

    def __init__(self, on_step: OnStep | None, progress: Progress) -> None:
        self.on_step = on_step
        self.progress = progress
        self.reported = 0

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,  # noqa: ANN401 (further arguments of the Trainer)
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise UsageError(
                f"learning_rate: at step {state.global_step} the loss became {loss}; lower it"
            )
        step = state.global_step
        self.progress.advance(step - self.reported, f"loss {loss:.4g}")
        self.reported = step
        if self.on_step is not None:
            self.on_step(step, loss)
