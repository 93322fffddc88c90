"""`defuse unlearn`: run a recipe and write a checkpoint."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from defuse.unlearning.recipe import Recipe


def unlearn(
    recipe: Annotated[
        Path,
        typer.Argument(help="A YAML recipe, or the name of a shipped one.", show_default=False),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="field=value, such as steps=100 or noise.std=0.1x"),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Only say what is read, trained and written."),
    ] = False,
) -> None:
    """Unlearn as RECIPE says and write an ordinary Hugging Face checkpoint.

    The same command resumes an interrupted run. Start it with `accelerate launch` to share the work
    between processes.
    """
    from defuse.models.load import resolve_device
    from defuse.recipes import find_recipe
    from defuse.unlearning.recipe import load_recipe
    from defuse.unlearning.run import check, finished, run
    from defuse.unlearning.train import StepRecord
    from defuse.utils.distributed import join_processes
    from defuse.utils.errors import caution
    from defuse.utils.progress import shown
    from defuse.utils.screen import Console

    settings = load_recipe(find_recipe(recipe), overrides or ())
    processes = join_processes(resolve_device(settings.device))
    console = Console(stderr=True, quiet=not processes.is_first)
    checked = check(settings)
    if finished(checked):
        console.print(f"{settings.output}: this recipe's run is finished; nothing to do")
        return
    if processes.is_first:
        for sentence in checked.cautions:
            caution(sentence)
    if plan:
        for line in checked.forecast.lines(resolve_device(settings.device)):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return
    with shown(quiet=not processes.is_first) as progress:
        record = run(checked, progress, processes)
    last = StepRecord(**record["steps"][-1])
    console.print(
        f"{settings.output}: {settings.steps} steps in {record['seconds']:.0f} s ({last.losses})"
    )
    for line in (*_check_up(settings, record), *_next(settings)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _check_up(recipe: "Recipe", record: Mapping[str, Any]) -> Iterator[str]:
    """The check-up, before → after unlearning."""
    from defuse.evaluate.check_up import PROMPTS, lines

    if "check_up" not in record:
        return
    yield from lines(record["check_up"])
    if not record["check_up"]["continuations"]:
        yield (
            "Its upper blocks were not loaded, so it wrote no text here; give "
            f"{quote(recipe.output)} prompts such as {PROMPTS[0]!r} with "
            "defuse evaluate --generate."
        )


def _next(recipe: "Recipe") -> Iterator[str]:
    """The command that measures what is forgotten and kept, with places for the questions."""
    yield "To measure what it has forgotten and kept, with questions about both:"
    yield (
        f"  defuse evaluate {quote(recipe.output)} --reference {quote(recipe.model)} "
        "--questions QUESTIONS --perturb FORGET_TOKENS --position before --out RESULT.json"
    )
