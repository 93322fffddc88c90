"""Curves and tables of relearning."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from defuse.attacks.data import FORGET, Answers
from defuse.attacks.results import Curves, Line, accuracy
from defuse.evaluate import Interval, compare
from defuse.report import TableData


@dataclass(frozen=True)
class Checkpoint:
    """The answers of a model after `steps` on `texts` texts of a source (both 0: untrained).

    `loss`: mean over the steps since the checkpoint before (nats per token); None if untrained.
    """

    source: str
    texts: int
    steps: int
    loss: float | None
    answers: Answers

    @property
    def right(self) -> list[bool]:
        """Whether each forget question is answered right."""
        return [outcome.is_correct for outcome in self.answers[FORGET]]

    @property
    def accuracy(self) -> Interval:
        """Accuracy on the forget questions."""
        return accuracy(self.answers[FORGET])


def against_texts(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints before training, and at the end of each training."""
    last = max(each.steps for each in checkpoints)
    return [each for each in checkpoints if each.steps in (0, last)]


def against_steps(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints before training, and all of the training on the most texts of each source."""
    most = {each.source: each.texts for each in checkpoints}  # the last is the largest
    return [each for each in checkpoints if each.texts in (0, most[each.source])]


def curves(models: Mapping[str, Sequence[Checkpoint]]) -> list[Curves]:
    """Plot forget accuracy against texts and against steps, a line for each model and source."""
    y = "accuracy on forget questions"
    by_texts = [
        Line(name, [each.texts for each in line], [each.accuracy for each in line])
        for name, line in _lines(models, against_texts)
    ]
    by_steps = [
        Line(name, [each.steps for each in line], [each.accuracy for each in line])
        for name, line in _lines(models, against_steps)
    ]
    return [
        Curves("What comes back, by texts", "texts", y, by_texts, log_x=True),
        Curves("What comes back, by steps on the most texts", "steps", y, by_steps, log_x=True),
    ]


def _lines(
    models: Mapping[str, Sequence[Checkpoint]],
    choose: Callable[[Sequence[Checkpoint]], list[Checkpoint]],
) -> Iterator[tuple[str, list[Checkpoint]]]:
    for model, checkpoints in models.items():
        for source in dict.fromkeys(each.source for each in checkpoints):
            yield (
                f"{model}, {source} texts",
                [each for each in choose(checkpoints) if each.source == source],
            )


def beside_retrained(
    model: Sequence[Checkpoint], retrained: Sequence[Checkpoint]
) -> list[TableData]:
    """Compare both models' accuracy at the same checkpoints, on the same questions.

    The interval is Newcombe's, the p-value McNemar's; the p-values are not adjusted for their
    number.
    """
    head = ["texts of", "texts", "steps", "model", "retrained", "model - retrained", "95 %", "p"]
    captions = {
        "What comes back, by texts": against_texts,
        "What comes back, by steps on the most texts": against_steps,
    }
    return [
        TableData(
            caption,
            head,
            [_row(*pair) for pair in zip(choose(model), choose(retrained), strict=True)],
        )
        for caption, choose in captions.items()
    ]


def _row(model: Checkpoint, retrained: Checkpoint) -> list[str]:
    found = compare(model.right, retrained.right)
    difference = found.difference
    return [
        model.source,
        str(model.texts),
        str(model.steps),
        f"{model.accuracy.value:.3f}",
        f"{retrained.accuracy.value:.3f}",
        f"{difference.value:+.3f}",
        f"[{difference.low:+.3f}, {difference.high:+.3f}]",
        f"{found.p_value:.3g}",
    ]
