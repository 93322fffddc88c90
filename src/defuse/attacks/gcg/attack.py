"""GCG suffixes: does odd text break an unlearned model, or bring the knowledge back?

Greedy coordinate gradient (Zou et al. 2307.15043) searches tokens that, at the end of a question,
make its answer wrong (accuracy under attack on retain questions) or right again (on forget
questions). A suffix counts as text: all figures are of the attacked questions asked as any other.
For testing one's own models; what is aimed at is the letter of an answer and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import Answers, Material, ask_all, ask_questions
from defuse.attacks.gcg.config import GCG, Aim
from defuse.attacks.gcg.places import with_suffix
from defuse.attacks.gcg.plan import Plan, Planner
from defuse.attacks.gcg.score import Budget, Scorer
from defuse.attacks.gcg.search import Found, Search
from defuse.attacks.notes import Notes
from defuse.attacks.results import Condition, Curves, Example, Line, Result, condition, examples
from defuse.evaluate import bootstrap_mean
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.report import TableData

KIND = "gcg"
CONTROL = "random suffix"
POINTS = 50  # of a curve, at most
HEAD = ("search", "suffix", "steps", "right answer's log-probability", "after")

Suffixes = Mapping[str, Mapping[int, str]]  # of each set, by a question's place in it


@dataclass(frozen=True)
class Part:
    """What one search, or one of each question, adds to the result."""

    conditions: Sequence[Condition]
    examples: Sequence[Example]
    rows: Sequence[Sequence[str]] = ()
    lines: Sequence[Line] = ()


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    material: Material,
    config: GCG | None = None,
    *,
    notes: Notes | None = None,
) -> Result:
    """Search suffixes for each aim and mode, and ask `model` with them and with random ones."""
    config, notes = config or GCG(), notes or Notes()
    planner = Planner(model, tokenizer, material, config)
    universal = [planner.universal(aim) for aim in config.aims if "universal" in config.modes]
    own = [planner.each_question(aim) for aim in config.aims if "question" in config.modes]
    controls = planner.random_suffixes()
    with notes.watching(model), frozen_model(model):
        before = ask_all(model, tokenizer, material, notes, "before")
        attack = Attack(model, planner, notes, before)
        parts = [
            attack.with_random(controls),
            *(attack.with_universal(plan) for plan in universal),
            *(attack.with_own(plans) for plans in own),
        ]
    lines = [line for part in parts for line in part.lines]
    rows = [row for part in parts for row in part.rows]
    return Result(
        KIND,
        asdict(config),
        [condition for part in parts for condition in part.conditions],
        notes.cost,
        [example for part in parts for example in part.examples],
        [_curves(lines)] if lines else [],
        [TableData("Suffixes that were found", HEAD, rows)] if rows else [],
    )


class Attack:
    """A model under attack, and how it answers `before`."""

    def __init__(
        self, model: PreTrainedModel, planner: Planner, notes: Notes, before: Answers
    ) -> None:
        self.model = model
        self.planner = planner
        self.notes = notes
        self.before = before
        self.decoder = Decoder(model)
        self.budget = Budget.of(model.device, planner.material.settings.token_budget)

    def with_random(self, texts: Sequence[str]) -> Part:
        """All questions, each with one of the random suffixes."""
        sets = self.planner.material.sets
        suffixes = {
            each: {row: texts[row % len(texts)] for row in range(len(questions))}
            for each, questions in sets.items()
        }
        return Part(*self._ask(CONTROL, suffixes))

    def with_universal(self, plan: Plan) -> Part:
        """A suffix searched on some questions; these, the others, and the other set."""
        search = self._search(plan)
        trace = search.run(self.notes)
        best = search.best(trace)
        (text,) = plan.spelling.texts([best.suffix])
        numbers = {"steps": float(len(trace) - 1), "loss_first": trace[0].loss, "loss": best.loss}
        parts: Mapping[str, dict[str, dict[int, str]]] = {"searched": {}, "held out": {}}
        for each, questions in self.planner.material.sets.items():
            for row in range(len(questions)):
                searched = each == plan.questions and row in plan.rows
                part = parts["searched" if searched else "held out"]
                part.setdefault(each, {})[row] = text
        asked = [self._ask(f"{plan.name}, {part}", parts[part], numbers) for part in parts]
        return Part(
            [condition for conditions, _ in asked for condition in conditions],
            [example for _, turned in asked for example in turned],
            [_row(plan, text, trace, best)],
            [_line(plan.aim, trace, self.planner.config.seed)],
        )

    def with_own(self, plans: Sequence[Plan]) -> Part:
        """Each question with a suffix of its own; those that are as aimed for stay as they are."""
        aim, asked = plans[0].aim, plans[0].questions
        suffixes: dict[int, str] = {}
        rows: list[Sequence[str]] = []
        steps = 0
        for plan in plans:
            (row,) = plan.rows
            suffixes[row] = ""
            if self.before[asked][row].is_correct == (aim == "recover"):
                continue
            search = self._search(plan)
            trace = search.run(self.notes)
            best = search.best(trace)
            (suffixes[row],) = plan.spelling.texts([best.suffix])
            rows.append(_row(plan, suffixes[row], trace, best))
            steps += len(trace) - 1
        numbers = {"searched": float(len(rows)), "steps": steps / max(1, len(rows))}
        return Part(*self._ask(f"{aim}, each question", {asked: suffixes}, numbers), rows)

    def _search(self, plan: Plan) -> Search:
        scorer = Scorer(self.decoder, plan.problems, self.budget)
        planner = self.planner
        allowed, config = planner.allowed, planner.config
        return Search(plan.name, scorer, plan.spelling, allowed, plan.start, config)

    def _ask(
        self, name: str, suffixes: Suffixes, numbers: Mapping[str, float] | None = None
    ) -> tuple[list[Condition], list[Example]]:
        """The questions that have a suffix (or an empty one), with it and without."""
        material, config = self.planner.material, self.planner.config
        before = {each: [self.before[each][row] for row in rows] for each, rows in suffixes.items()}
        after = {
            each: ask_questions(
                self.model,
                self.planner.tokenizer,
                [
                    with_suffix(material.sets[each][row], text, material.settings, config.place)
                    for row, text in texts.items()
                ],
                material.settings,
                self.notes,
                f"{name}/{each}",
            )
            for each, texts in suffixes.items()
        }
        turned = list(examples(name, before, after, material.settings.score))
        return [condition(name, before, after, config.seed, numbers)], turned


def _row(plan: Plan, text: str, trace: Sequence[Found], best: Found) -> Sequence[str]:
    first, last = (_right(plan.aim, found) for found in (trace[0], best))
    means = [f"{sum(values) / len(values):.3f}" for values in (first, last)]
    return (plan.name, repr(text), str(len(trace) - 1), *means)


def _right(aim: Aim, found: Found) -> list[float]:
    """The right answer's log-probability in each problem, which is the loss or minus it."""
    return [loss if aim == "break" else -loss for loss in found.losses]


def _line(aim: Aim, trace: Sequence[Found], seed: int) -> Line:
    steps = list(range(0, len(trace), -(-len(trace) // POINTS)))
    return Line(aim, steps, [bootstrap_mean(_right(aim, trace[step]), seed) for step in steps])


def _curves(lines: Sequence[Line]) -> Curves:
    return Curves(
        "Right answer's log-probability on the questions a universal suffix is searched on",
        "step",
        "nats",
        lines,
    )
