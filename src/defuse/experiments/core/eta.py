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
from defuse.utils.progress import duration

PROBE_SHAPE = (4, 64)  # texts and tokens, as in a step
# Forward passes' worth of a text's forward and backward passes: up to the steered layer, to the
# top, and to the top with the reference's pass beside it.
SHALLOW, DEEP, DEEP_TWICE = 0.25, 3.5, 4.5
QUESTION_TOKENS = 36  # of a prompt with its continuations, about
CHARACTERS = 4  # of a token, about


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


def work_left(context: ExperimentContext, run: Run) -> float:
    """The work that a run still needs, in tokens pushed once through the whole model, about."""
    missing = missing_steps(context, run)
    if not missing:
        return 0.0
    forget = DEEP if strength_field(run.method) is None else SHALLOW
    retain = SHALLOW if run.retain_loss == HiddenMSE.name else DEEP_TWICE
    step = run.recipe.batch_size * fmean(
        forget * _length(topic.forget, topic.forget_length, packed=topic.packed)
        + retain * _length(topic.retain, topic.retain_length, packed=topic.packed)
        for topic in (source.build() for source in run.recipe.topics)
    )
    questions = context.scenario.questions[run.questions]
    asked = sum(probe.count for at in missing for probe in questions.probes(final=at in run.late))
    return run.steps * step + asked * QUESTION_TOKENS


def _length(texts: Sequence[Text], most: int, *, packed: bool) -> float:
    """The tokens of a text in a step, of at most `most`, about."""
    characters = fmean(min(len(str(text)), CHARACTERS * most) for text in texts)
    return most if packed else characters / CHARACTERS


def time_left(context: ExperimentContext, runs: Sequence[Run], at_a_time: int) -> str:
    """How long the runs will take on this machine, `at_a_time` of them side by side, in words."""
    work = sum(work_left(context, run) for run in runs)
    threads = None if at_a_time == 1 else 1
    pace = at_a_time * tokens_per_second(context.reference.model, threads)
    return duration(work / pace)
