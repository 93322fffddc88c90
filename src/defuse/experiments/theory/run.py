"""One call of `defuse theory`: shifts of two models, with predicted and measured flip rates."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from defuse.evaluate import Settings
from defuse.experiments.theory.compare import LayerReport, compare_layer
from defuse.experiments.theory.figure import draw
from defuse.experiments.theory.shifts import Shifts, measure_shifts
from defuse.models.architectures import architecture_of
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel, load_config, load_model, locate, resolve_device
from defuse.questions import (
    SENTENCE,
    Perturbation,
    Position,
    Question,
    Score,
    load_questions,
    load_tokens,
)
from defuse.report.format import interval, markdown_table
from defuse.report.plots import save
from defuse.utils.errors import UsageError, require
from defuse.utils.files import check_writable, write_json, write_text
from defuse.utils.progress import SILENT, Progress
from defuse.utils.provenance import versions
from defuse.utils.scales import resolve

SCHEMA_VERSION = 1
FEWEST_QUESTIONS = 2
HEAD = (
    "model",
    "layer",
    "noise std",
    "η",
    "systematic",
    "normality p",
    "isotropic",
    "general",
    "Monte Carlo",
    "measured",
)


@dataclass(frozen=True)
class Request:
    """What to measure on `model` and on `reference`, the model before unlearning.

    `questions`: a file or hub dataset. `forget_tokens`: a file, one token a line. `layers`: ()
    means a quarter, a half and three quarters of the way up. `noise_stds`: absolute or as multiples
    ("1x") of the hidden states' own standard deviation per unit at the layer.
    """

    model: str
    reference: str
    questions: str
    forget_tokens: str
    out: Path
    position: Position = "before"
    sentence: str = SENTENCE
    score: Score = "letters"
    subject: str | None = None
    limit: int | None = None
    layers: Sequence[int] = ()
    noise_stds: Sequence[str] = ("0.3x", "1x", "3x")
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 42


@dataclass(frozen=True)
class Plan:
    """A request that can be run, with its questions and tokens read."""

    request: Request
    questions: Sequence[Question]
    perturbation: Perturbation

    @property
    def settings(self) -> Settings:
        """How the questions are asked."""
        return Settings(self.request.score, self.request.subject, seed=self.request.seed)

    @property
    def pairs(self) -> list[tuple[Question, Question]]:
        """Each question as it is and with a forget-token."""
        seed = self.request.seed
        return [(q, self.perturbation.variants(q, seed)["forget_token"]) for q in self.questions]


@dataclass(frozen=True)
class Result:
    """Reports of the model and of its reference, layer by layer and noise by noise."""

    model: Sequence[LayerReport]
    reference: Sequence[LayerReport]


def check(request: Request) -> Plan:
    """Read the questions and tokens. Raises UsageError before any weights are read."""
    for name in (request.model, request.reference):
        config = load_config(locate(name))
        architecture_of(config.model_type)
        last = config.num_hidden_layers - 1
        for layer in request.layers:
            require(0 <= layer <= last, "layers", layer, f"is not a block of {name}: 0 to {last}")
    for std in request.noise_stds:
        require(resolve(_number(std), 1.0, "noise-std") > 0, "noise-std", std, "must be above 0")
    resolve_device(request.device)
    check_writable(request.out, "out")
    questions = load_questions(request.questions, subject=request.subject, limit=request.limit)
    enough = len(questions) >= FEWEST_QUESTIONS
    require(enough, "questions", len(questions), f"are too few; give {FEWEST_QUESTIONS} or more")
    tokens = load_tokens(request.forget_tokens)
    return Plan(request, questions, Perturbation(tokens, request.position, (), request.sentence))


def run(plan: Plan, progress: Progress = SILENT) -> Result:
    """Measure, compare, and write `theory.json`, `theory.md` and the figure into the folder."""
    out = plan.request.out
    shifts, of_model = _measure(plan, plan.request.model, progress)
    _, of_reference = _measure(plan, plan.request.reference, progress)
    result = Result(of_model, of_reference)
    save(draw(result.model, shifts), out / "theory")
    write_text(out / "theory.md", markdown_table(HEAD, table(result)))
    write_json(out / "theory.json", _document(plan, result))
    return result


def quarter_points(num_layers: int) -> tuple[int, ...]:
    """The layers a quarter, a half and three quarters of the way up."""
    return tuple(sorted({num_layers * quarter // 4 for quarter in (1, 2, 3)}))


def table(result: Result) -> list[list[str]]:
    """The rows below `HEAD`."""
    return [
        [name, *_cells(report)]
        for name, reports in (("unlearned", result.model), ("reference", result.reference))
        for report in reports
    ]


def _cells(report: LayerReport) -> list[str]:
    rate, error = report.monte_carlo
    return [
        str(report.layer),
        f"{report.noise_std:.3g}",
        f"{report.shift_variance:.3g}",
        f"{report.systematic:.2f}",
        "" if report.normality is None else f"{report.normality:.2g}",
        f"{report.isotropic:.3f}",
        f"{report.general:.3f}",
        f"{rate:.3f} ± {error:.3f}",
        interval(report.measured),
    ]


def _measure(plan: Plan, name: str, progress: Progress) -> tuple[Shifts, list[LayerReport]]:
    loaded = load_model(name, device=plan.request.device, dtype=plan.request.dtype)
    progress.start(f"{name}, shifts", len(plan.questions))
    shifts = measure_shifts(loaded, plan.pairs, plan.settings, progress)
    return shifts, _reports(plan, loaded, shifts, progress)


def _reports(
    plan: Plan, loaded: LoadedModel, shifts: Shifts, progress: Progress
) -> list[LayerReport]:
    layers = plan.request.layers or quarter_points(Decoder(loaded.model).num_layers)
    progress.start(f"{loaded.name}, noise", len(layers) * len(plan.request.noise_stds))
    reports = []
    for layer in layers:
        if not shifts.shift[layer].any():
            raise UsageError(
                f"perturb: the tokens do not change the hidden states at layer {layer} at the last "
                "token of the prompt; use --position before or stem"
            )
        for text in plan.request.noise_stds:
            std = resolve(_number(text), float(shifts.spread[layer]), "noise-std")
            reports.append(compare_layer(loaded, plan.questions, plan.settings, shifts, layer, std))
            progress.advance()
    return reports


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _document(plan: Plan, result: Result) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "model": plan.request.model,
        "reference": plan.request.reference,
        "questions": [question.id for question in plan.questions],
        "perturbation": asdict(plan.perturbation),
        "score": plan.request.score,
        "seed": plan.request.seed,
        "reports": asdict(result),
        "versions": versions(),
    }
