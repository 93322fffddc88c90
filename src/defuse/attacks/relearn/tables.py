"""What relearning found, as curves and tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from defuse.attacks.data import FORGET, Answers
from defuse.attacks.results import Curves, Line, accuracy
from defuse.evaluate import Interval, compare
from defuse.report import TableData


@dataclass(frozen=True)
class Stage:
    """How a model answers after `steps` on `texts` texts of a source (both 0: as it was).

    `loss`: the mean over the steps since the stage before (nats per token); None at 0.
    """

    source: str
    texts: int
    steps: int
    loss: float | None
    answers: Answers

    @property
    def right(self) -> list[bool]:
        """Whether each forget question was answered rightly."""
        return [outcome.is_correct for outcome in self.answers[FORGET]]

    @property
    def accuracy(self) -> Interval:
        """On the forget questions."""
        return accuracy(self.answers[FORGET])


def against_texts(stages: Sequence[Stage]) -> list[Stage]:
    """The stages at the end of each training, and before."""
    last = max(stage.steps for stage in stages)
    return [stage for stage in stages if stage.steps in (0, last)]


def against_steps(stages: Sequence[Stage]) -> list[Stage]:
    """All stages of the training on the most texts of each source, and before."""
    most = {stage.source: stage.texts for stage in stages}  # the last is the largest
    return [stage for stage in stages if stage.texts in (0, most[stage.source])]


def curves(models: Mapping[str, Sequence[Stage]]) -> list[Curves]:
    """Forget accuracy against texts and against steps, a line for each model and source."""
    y = "forget questions answered rightly"
    by_texts = [
        Line(name, [stage.texts for stage in line], [stage.accuracy for stage in line])
        for name, line in _lines(models, against_texts)
    ]
    by_steps = [
        Line(name, [stage.steps for stage in line], [stage.accuracy for stage in line])
        for name, line in _lines(models, against_steps)
    ]
    return [
        Curves("What comes back, by texts", "texts", y, by_texts, log_x=True),
        Curves("What comes back, by steps on the most texts", "steps", y, by_steps, log_x=True),
    ]


def _lines(
    models: Mapping[str, Sequence[Stage]], choose: Callable[[Sequence[Stage]], list[Stage]]
) -> Iterator[tuple[str, list[Stage]]]:
    for model, stages in models.items():
        for source in dict.fromkeys(stage.source for stage in stages):
            yield (
                f"{model}, {source} texts",
                [stage for stage in choose(stages) if stage.source == source],
            )


def beside_gold(model: Sequence[Stage], gold: Sequence[Stage]) -> list[TableData]:
    """Both models' accuracy at the same stages, with their difference on the same questions.

    The interval is Newcombe's, the p-value McNemar's; no p-value is adjusted for their number.
    """
    head = ["texts of", "texts", "steps", "model", "gold", "model - gold", "95 %", "p"]
    captions = {
        "What comes back, by texts": against_texts,
        "What comes back, by steps on the most texts": against_steps,
    }
    return [
        TableData(
            caption, head, [_row(*pair) for pair in zip(choose(model), choose(gold), strict=True)]
        )
        for caption, choose in captions.items()
    ]


def _row(model: Stage, gold: Stage) -> list[str]:
    found = compare(model.right, gold.right)
    difference = found.difference
    return [
        model.source,
        str(model.texts),
        str(model.steps),
        f"{model.accuracy.value:.3f}",
        f"{gold.accuracy.value:.3f}",
        f"{difference.value:+.3f}",
        f"[{difference.low:+.3f}, {difference.high:+.3f}]",
        f"{found.p_value:.3g}",
    ]
