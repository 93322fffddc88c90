"""`defuse finetune`: fine-tune a model on texts or answers."""

from pathlib import Path
from typing import Annotated

import typer

Option = typer.Option


def finetune(
    model: Annotated[
        str, typer.Argument(help="Hub id, folder, .gguf file or adapter.", show_default=False)
    ],
    data: Annotated[
        list[str],
        Option(help="File or hub dataset: texts, or questions with answers; repeat."),
    ],
    out: Annotated[Path, Option(help="Folder for the checkpoint or the adapter.")],
    lora: Annotated[int | None, Option(help="Train a LoRA adapter of this rank instead.")] = None,
    merge: Annotated[bool, Option("--merge", help="Merge the adapter into the model.")] = False,
    epochs: Annotated[int, Option(help="Passes over all texts.")] = 5,
    learning_rate: Annotated[float, Option(help="Peak, reached after one epoch.")] = 1e-5,
    batch_size: Annotated[int, Option(help="Texts per step, over all processes.")] = 32,
    accumulate: Annotated[int, Option(help="Parts of a step, to save memory.")] = 1,
    length: Annotated[int, Option(help="Tokens to which a text is truncated.")] = 512,
    weight_decay: Annotated[float, Option(help="AdamW's weight decay.")] = 0.01,
    checkpoint_every: Annotated[
        int | None, Option(help="Steps between checkpoints; default an epoch, 0 for none.")
    ] = None,
    chat: Annotated[bool, Option("--chat", help="Use the tokenizer's chat template.")] = False,
    seed: Annotated[int, Option(help="Seed of the order of texts.")] = 42,
    device: Annotated[str, Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, Option(help="auto, float32, bfloat16 or float64.")] = "auto",
) -> None:
    """Fine-tune MODEL on texts or on answers to questions; the same command resumes after a kill.

    For a question with an answer, the loss counts only the answer. Uses as many processes as
    `accelerate launch` starts.
    """
    from defuse.finetune import FineTuning
    from defuse.finetune.run import Request, check, finished, run
    from defuse.models.load import resolve_device
    from defuse.utils.distributed import join_processes
    from defuse.utils.progress import shown
    from defuse.utils.screen import Console

    settings = FineTuning(
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        length=length,
        lora=lora,
        weight_decay=weight_decay,
        accumulate=accumulate,
        checkpoint_every=checkpoint_every,
        seed=seed,
    )
    plan = check(Request(model, tuple(data), out, settings, merge, chat, device, dtype))
    processes = join_processes(resolve_device(device))
    console = Console(stderr=True, quiet=not processes.is_first)
    if finished(plan):
        console.print(f"{out}: this run is finished; nothing to do")
        return
    with shown(quiet=not processes.is_first) as progress:
        record = run(plan, progress, processes)
    console.print(
        f"{out}: {plan.steps} steps in {record['seconds']:.0f} s (loss {record['losses'][-1]:.4g})"
    )
