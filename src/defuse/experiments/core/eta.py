"""Estimates of how long an experiment takes."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean

import torch
from transformers import PreTrainedModel

from defuse.data.text import Text
from defuse.experiments.core.run import ExperimentContext, missing_steps
from defuse.experiments.core.scenario import Run
from defuse.methods import HiddenMSE
from defuse.unlearning.defaults import strength_field
from defuse.unlearning.recipe import Recipe
from defuse.utils.progress import duration

PROBE_SHAPE = (4, 64)  # texts and tokens, as in a step
# Forward passes' worth of a text's forward and backward passes: up to the steered layer, to the
# top, and to the top with the reference's pass beside it.
SHALLOW, DEEP, DEEP_TWICE = 0.25, 3.5, 4.5


def tokens_per_second(model: PreTrainedModel, threads: int | None = None) -> float:
    """How many tokens pass forward through the model in a second (the better of two tries).

    `threads` of the processor; None takes those that torch has.
    """
    ids = torch.ones(PROBE_SHAPE, dtype=torch.long, device=model.device)
    seconds = []
    with torch.inference_mode(), _threads(threads or torch.get_num_threads()):
        for _ in range(2):
            began = time.perf_counter()
            model(ids, logits_to_keep=1).logits.sum().item()
            seconds.append(time.perf_counter() - began)
    return ids.numel() / min(seconds)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def step_work(method: str, retain: str, forget_tokens: float, retain_tokens: float) -> float:
    """A step of unlearning in tokens pushed once through the whole model, about."""
    steers = strength_field(method) is not None
    stops = retain == HiddenMSE.name
    forget = forget_tokens * (SHALLOW if steers else DEEP)
    return forget + retain_tokens * (SHALLOW if stops else DEEP_TWICE)


QUESTION_TOKENS = 36  # of a prompt with its continuations, about
CHARACTERS = 4  # of a token, about


def work_left(context: ExperimentContext, run: Run) -> float:
    """The work that a run still needs, in tokens pushed once through the whole model, about."""
    missing = missing_steps(context, run)
    if not missing:
        return 0.0
    forget, retain = _tokens_of_a_step(run.recipe)
    step = step_work(run.method, run.retain_loss, forget, retain)
    questions = context.scenario.questions[run.questions]
    asked = sum(probe.count for at in missing for probe in questions.probes(final=at == run.steps))
    return max(missing) * step + asked * QUESTION_TOKENS


def _tokens_of_a_step(recipe: Recipe) -> tuple[float, float]:
    """Tokens of a step's forget and retain texts: texts shorter than their bound, about."""
    topics = [topic.build() for topic in recipe.topics]

    def tokens(texts: Sequence[Text], length: int, *, packed: bool) -> float:
        characters = fmean(min(len(str(text)), CHARACTERS * length) for text in texts)
        return length if packed else characters / CHARACTERS

    batch = recipe.batch_size
    forget = fmean(tokens(t.forget, t.forget_length, packed=t.packed) for t in topics)
    retain = fmean(tokens(t.retain, t.retain_length, packed=t.packed) for t in topics)
    return batch * forget, batch * retain


def time_left(context: ExperimentContext, runs: Sequence[Run], at_a_time: int) -> str:
    """How long the runs will take on this machine, `at_a_time` of them side by side, in words."""
    work = sum(work_left(context, run) for run in runs)
    threads = None if at_a_time == 1 else 1
    pace = at_a_time * tokens_per_second(context.reference.model, threads)
    return duration(work / pace)
