"""`defuse finetune`: a model and texts in, a model that knows them out."""

from pathlib import Path
from typing import Annotated

import typer

Option = typer.Option


def finetune(
    model: Annotated[
        str, typer.Argument(help="Hub id, folder, .gguf file or adapter.", show_default=False)
    ],
    data: Annotated[
        list[str], Option(help="Texts, or questions with answers: file or hub dataset; repeat.")
    ],
    out: Annotated[Path, Option(help="Folder for the checkpoint, or the adapter.")],
    lora: Annotated[int | None, Option(help="Train a LoRA adapter of this rank instead.")] = None,
    merge: Annotated[bool, Option("--merge", help="Write the adapter merged.")] = False,
    epochs: Annotated[int, Option(help="Times through all texts.")] = 5,
    learning_rate: Annotated[float, Option(help="Peak; warms up for one epoch.")] = 1e-5,
    batch_size: Annotated[int, Option(help="Texts of a step, over all processes.")] = 32,
    accumulate: Annotated[int, Option(help="Parts a step is computed in, for memory.")] = 1,
    length: Annotated[int, Option(help="Tokens after which a text is cut.")] = 512,
    weight_decay: Annotated[float, Option(help="AdamW's.")] = 0.01,
    checkpoint_every: Annotated[
        int | None, Option(help="Steps between checkpoints; default an epoch, 0 for none.")
    ] = None,
    chat: Annotated[bool, Option("--chat", help="Ask by the tokenizer's chat template.")] = False,
    seed: Annotated[int, Option(help="Draws the texts' order.")] = 42,
    device: Annotated[str, Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, Option(help="auto, float32, bfloat16 or float64.")] = "auto",
) -> None:
    """Teach MODEL texts, or answers to questions; goes on after a kill by the same command.

    Of a question with an answer only the answer's tokens are learnt. Runs on as many processes as
    `accelerate launch` starts.
    """
    from rich.console import Console

    from defuse.cli.progress import losses_shown
    from defuse.finetune import FineTuning
    from defuse.finetune.run import Order, check, execute, finished
    from defuse.models.load import resolve_device
    from defuse.utils.distributed import join_processes

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
    job = check(Order(model, tuple(data), out, settings, merge, chat, device, dtype))
    processes = join_processes(resolve_device(device))
    console = Console(stderr=True, quiet=not processes.is_first)
    if finished(job):
        console.print(f"{out}: this run is finished; nothing to do")
        return
    with losses_shown(job.steps, console) as on_step:
        record = execute(job, on_step, processes)
    console.print(f"{out}: {job.steps} steps in {record['seconds']:.0f} s")
