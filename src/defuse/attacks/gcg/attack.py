"""GCG suffixes: does odd text break an unlearned model, or bring the knowledge back?

Greedy coordinate gradient (Zou et al. 2307.15043) searches for tokens that, at the end of a
question, make its answer wrong (accuracy under attack, on retain questions) or right again (on
forget questions). Each figure is measured with the suffix as text: the attacked question is asked
as any other. For tests of one's own models; the search aims at the letter of an answer and nothing
else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import Answers, AttackData, ask_all, ask_questions
from defuse.attacks.findings import Findings
from defuse.attacks.gcg.config import GCG, Aim
from defuse.attacks.gcg.places import with_suffix
from defuse.attacks.gcg.score import Budget, Scorer
from defuse.attacks.gcg.search import Found, Search
from defuse.attacks.gcg.tasks import Searches, SearchTask, prepare
from defuse.attacks.results import Condition, Curves, Example, Line, Result, condition, examples
from defuse.evaluate import bootstrap_mean
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.report import TableData
from defuse.utils.progress import SILENT, Progress

NAME = "gcg"
CONTROL = "random suffix"
POINTS = 50  # of a curve, at most
HEAD = ("search", "suffix", "steps", "right answer's log-probability", "after")

Suffixes = Mapping[str, Mapping[int, str]]  # by set, and by a question's place in it


@dataclass(frozen=True)
class Part:
    """What one search, or one for each question, adds to the result."""

    conditions: Sequence[Condition]
    examples: Sequence[Example]
    rows: Sequence[Sequence[str]] = ()
    lines: Sequence[Line] = ()


def check(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: AttackData, config: GCG
) -> None:
    """Raise UsageError for what the attack refuses, without reading weights; see `prepare`."""
    prepare(model, tokenizer, data, config)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: GCG | None = None,
    *,
    findings: Findings | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Search suffixes for each aim and mode; ask `model` with them, and with random ones.

    Raises UsageError as `check` does.
    """
    config, findings = config or GCG(), findings or Findings()
    searches = prepare(model, tokenizer, data, config)
    findings.report_to(progress, NAME, _pieces(searches, data, config))
    with findings.counting(model), frozen_model(model):
        before = ask_all(model, tokenizer, data, findings, "before")
        budget = Budget.of(model.device, data.settings.token_budget)
        attack = Attack(model, tokenizer, data, config, findings, before, searches, budget)
        parts = [
            attack.with_random(searches.controls),
            *(attack.with_universal(task) for task in searches.universal),
            *(attack.with_own(tasks) for tasks in searches.each_question),
        ]
    lines = [line for part in parts for line in part.lines]
    rows = [row for part in parts for row in part.rows]
    return Result(
        NAME,
        asdict(config),
        [condition for part in parts for condition in part.conditions],
        findings.cost,
        [example for part in parts for example in part.examples],
        [_curves(lines)] if lines else [],
        [TableData("Suffixes that were found", HEAD, rows)] if rows else [],
    )


def _pieces(searches: Searches, data: AttackData, config: GCG) -> int:
    """The number of findings: the steps of all searches, and the answers."""
    sets = len(data.sets)
    # Before, with random suffixes; with a universal one, searched and held out; with its own one.
    answers = 2 * sets + (sets + 1) * len(searches.universal) + len(searches.each_question)
    return answers + searches.count * (config.steps + 1)


@dataclass(frozen=True)
class Attack:
    """A model under attack, and its answers `before`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: AttackData
    config: GCG
    findings: Findings
    before: Answers
    searches: Searches
    budget: Budget

    def with_random(self, texts: Sequence[str]) -> Part:
        """Ask all questions, each with one of the random suffixes."""
        suffixes = {
            each: {row: texts[row % len(texts)] for row in range(len(questions))}
            for each, questions in self.data.sets.items()
        }
        return Part(*self._ask(CONTROL, suffixes, is_control=True))

    def with_universal(self, task: SearchTask) -> Part:
        """Search a suffix on some questions; ask these, the others, and the other set."""
        search = self._search(task)
        trace = search.run(self.findings)
        best = search.best(trace)
        (text,) = task.spelling.texts([best.suffix])
        numbers = {"steps": float(len(trace) - 1), "loss_first": trace[0].loss, "loss": best.loss}
        parts: Mapping[str, dict[str, dict[int, str]]] = {"searched": {}, "held out": {}}
        for each, questions in self.data.sets.items():
            for row in range(len(questions)):
                searched = each == task.questions and row in task.rows
                part = parts["searched" if searched else "held out"]
                part.setdefault(each, {})[row] = text
        asked = [
            self._ask(f"{task.name}, {part}", suffixes, numbers, headline=part == "held out")
            for part, suffixes in parts.items()
        ]
        return Part(
            [condition for conditions, _ in asked for condition in conditions],
            [example for _, changed in asked for example in changed],
            [_row(task, text, trace, best)],
            [_line(task.aim, trace, self.config.seed)],
        )

    def with_own(self, tasks: Sequence[SearchTask]) -> Part:
        """Ask each question with a suffix of its own; those that are as aimed for have none."""
        aim, asked = tasks[0].aim, tasks[0].questions
        suffixes: dict[int, str] = {}
        rows: list[Sequence[str]] = []
        steps = 0
        for task in tasks:
            (row,) = task.rows
            suffixes[row] = ""
            if self.before[asked][row].is_correct == (aim == "recover"):
                self.findings.skip(self.config.steps + 1)
                continue
            search = self._search(task)
            trace = search.run(self.findings)
            best = search.best(trace)
            (suffixes[row],) = task.spelling.texts([best.suffix])
            rows.append(_row(task, suffixes[row], trace, best))
            steps += len(trace) - 1
        numbers = {"searched": float(len(rows)), "steps": steps / max(1, len(rows))}
        return Part(*self._ask(f"{aim}, each question", {asked: suffixes}, numbers), rows)

    def _search(self, task: SearchTask) -> Search:
        scorer = Scorer(Decoder(self.model), task.problems, self.budget)
        allowed = self.searches.allowed
        return Search(task.name, scorer, task.spelling, allowed, task.start, self.config)

    def _ask(
        self,
        name: str,
        suffixes: Suffixes,
        numbers: Mapping[str, float] | None = None,
        *,
        headline: bool = True,
        is_control: bool = False,
    ) -> tuple[list[Condition], list[Example]]:
        """Ask the questions that have a suffix, which may be empty, with it and without."""
        data, config = self.data, self.config
        before = {each: [self.before[each][row] for row in rows] for each, rows in suffixes.items()}
        after = {
            each: ask_questions(
                self.model,
                self.tokenizer,
                [
                    with_suffix(data.sets[each][row], text, data.settings, config.place)
                    for row, text in texts.items()
                ],
                data.settings,
                self.findings,
                f"{name}/{each}",
            )
            for each, texts in suffixes.items()
        }
        changed = list(examples(name, before, after, data.settings.score))
        found = condition(
            name,
            before,
            after,
            config.seed,
            numbers,
            headline=headline,
            is_control=is_control,
        )
        return [found], changed


def _row(task: SearchTask, text: str, trace: Sequence[Found], best: Found) -> Sequence[str]:
    first, last = (_right(task.aim, found) for found in (trace[0], best))
    means = [f"{sum(values) / len(values):.3f}" for values in (first, last)]
    return (task.name, repr(text), str(len(trace) - 1), *means)


def _right(aim: Aim, found: Found) -> list[float]:
    """The right answer's log-probability in each problem, which is the loss or minus the loss."""
    return [loss if aim == "break" else -loss for loss in found.losses]


def _line(aim: Aim, trace: Sequence[Found], seed: int) -> Line:
    steps = list(range(0, len(trace), -(-len(trace) // POINTS)))
    return Line(aim, steps, [bootstrap_mean(_right(aim, trace[step]), seed) for step in steps])


def _curves(lines: Sequence[Line]) -> Curves:
    return Curves(
        "Right answer's log-probability on the questions that a universal suffix is searched on",
        "step",
        "nats",
        lines,
    )
