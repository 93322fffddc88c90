"""Estimates of how long an experiment takes."""

from collections.abc import Sequence
from statistics import fmean

from defuse.data.text import Text
from defuse.experiments.core.run import ExperimentContext, missing_steps
from defuse.experiments.core.scenario import Run
from defuse.models.decoder import Decoder
from defuse.unlearning.forecast import step_flops
from defuse.utils.progress import duration
from defuse.utils.speed import tokens_per_second

QUESTION_TOKENS = 36  # of a prompt with its continuations, about
CHARACTERS = 4  # of a token, about


def work_left(context: ExperimentContext, run: Run) -> float:
    """The work that a run still needs, in tokens pushed once through the whole model, about."""
    missing = missing_steps(context, run)
    if not missing:
        return 0.0
    model, recipe = context.reference.model, run.recipe
    topics = [source.build() for source in recipe.topics]
    forget = fmean(_length(t.forget, t.forget_length, packed=t.packed) for t in topics)
    retain = fmean(_length(t.retain, t.retain_length, packed=t.packed) for t in topics)
    tokens = recipe.batch_size * forget, recipe.batch_size * retain
    a_token = 2 * sum(parameter.numel() for parameter in model.parameters())
    step = step_flops(Decoder(model), recipe.unlearning(), tokens) / a_token
    questions = context.scenario.questions[run.questions]
    asked = sum(probe.count for at in missing for probe in questions.probes(run.stage(at)))
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
