"""Published figures of an experiment, beside this machine's, and the conclusions that hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from defuse.experiments.core.answers import FORGET, FORGET_TOKEN, RETAIN, Slice
from defuse.experiments.core.defences import Defence
from defuse.experiments.core.metrics import Group
from defuse.few_seeds import SeededMean, prediction_p_value
from defuse.report import TableData
from defuse.report.format import interval
from defuse.statistics import Interval
from defuse.utils.config import parse, read_fields

ABOVE, BELOW, AROUND = "above", "below", "around"


@dataclass(frozen=True)
class Headline:
    """A conclusion, and the figure that it rests on.

    `group`: the label of the runs. `figure`: "forget" and "retain" are accuracies; "after" is the
    accuracy after a forget-token at `position`; "vulnerability" and "any_sentence" are harms there;
    "matched" is what a defence changes there at matched forgetting. The conclusion `says` holds
    where the 95 % interval lies above `than`, lies below it, or contains it (`holds`).
    `published`: the figure in the README and docs/results.md.
    """

    says: str
    group: str
    figure: Literal["forget", "retain", "after", "vulnerability", "any_sentence", "matched"]
    holds: Literal["above", "below", "around"]
    than: float = 0.0
    position: str | None = None
    published: SeededMean | None = None

    @property
    def is_proportion(self) -> bool:
        """Whether the figure is a share of right answers."""
        return self.figure in ("forget", "retain", "after")

    def find(self, groups: Sequence[Group], defences: Sequence[Defence]) -> Interval | None:
        """The figure of an experiment's groups; None if its runs are not there."""
        group = next((each for each in groups if each.label == self.group), None)
        if group is None:
            return None
        if self.figure == "matched":
            found = [each.matched for each in defences if each.label == self.group]
            pair = found[0].get(self.position or "") if found else None
            return pair and pair.accuracy
        if self.figure in ("vulnerability", "any_sentence"):
            harms = getattr(group, self.figure).get(self.position)
            return harms and harms[0]
        after = Slice("retain", FORGET_TOKEN, self.position)
        part = {"forget": FORGET, "retain": RETAIN, "after": after}[self.figure]
        return group.accuracy.get(part)

    def is_held(self, figure: Interval) -> bool:
        """Whether the conclusion follows from a figure."""
        if self.holds == ABOVE:
            return figure.low > self.than
        if self.holds == BELOW:
            return figure.high < self.than
        return figure.low <= self.than <= figure.high

    def p_value(self, figure: Interval) -> float | None:
        """How surprising this figure is beside the published one, were all but the draw equal."""
        if self.published is None:
            return None
        return prediction_p_value(self.published, figure, proportions=self.is_proportion)


Found = tuple[Headline, Interval]


def read_headlines(path: Path | None) -> tuple[Headline, ...]:
    """The headlines in a JSON or YAML file, `{headlines: [fields, …]}`; none without a file."""
    if path is None:
        return ()
    given = read_fields(path).get("headlines", [])
    return tuple(
        parse(Headline, each, f"{path}: headlines.{place}") for place, each in enumerate(given)
    )


def find_figures(
    headlines: Sequence[Headline], groups: Sequence[Group], defences: Sequence[Defence]
) -> list[Found]:
    """The headlines whose runs are there, with this experiment's figures."""
    found = [(each, each.find(groups, defences)) for each in headlines]
    return [(headline, figure) for headline, figure in found if figure is not None]


def headline_table(found: Sequence[Found]) -> TableData:
    """Each conclusion with the published figure, this experiment's, and whether it holds here."""
    rows = [
        [
            headline.says,
            interval(headline.published),
            interval(figure),
            "yes" if headline.is_held(figure) else "no",
        ]
        for headline, figure in found
    ]
    caption = "Published conclusions, and this experiment's own figures"
    return TableData(caption, ["conclusion", "published", "here", "holds here"], rows)


def headline_sentence(found: Sequence[Found]) -> str:
    """Which of the published conclusions hold here."""
    lost = [headline.says for headline, figure in found if not headline.is_held(figure)]
    if not lost:
        return f"All {len(found)} published conclusions hold on this machine."
    held = len(found) - len(lost)
    return (
        f"{held} of {len(found)} published conclusions hold on this machine. Not here: "
        f"{'; '.join(lost)}."
    )
