"""One call of `defuse theory`: shifts of two models, with predicted and measured flip rates."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import probplot

from defuse.evaluate.answers import Part
from defuse.evaluate.sources import Asking, load_part
from defuse.experiments.theory.rates import LayerReport, compare_layer
from defuse.experiments.theory.shifts import Shifts, measure_flips, measure_shifts
from defuse.models.architectures import architecture_of
from defuse.models.load import LoadedModel, load_config, load_model, resolve_device
from defuse.models.locate import locate
from defuse.questions import SENTENCE, Perturbation, Position, load_tokens
from defuse.report import TableData
from defuse.report.format import interval, markdown_table
from defuse.report.plots import COLOURS, points, save
from defuse.store import SCHEMA_VERSION
from defuse.utils.config import Natural, check_fields
from defuse.utils.errors import UsageError, require
from defuse.utils.files import check_writable, write_json, write_text
from defuse.utils.progress import SILENT, Progress
from defuse.utils.provenance import fingerprint, versions
from defuse.utils.scales import Multiple, resolve

FEWEST_QUESTIONS = 2
CAPTION = "Flip rates: predicted, and measured on the model itself"
HEAD = (
    *("model", "layer", "noise std", "η", "systematic", "normality p"),
    *("isotropic", "general", "Monte Carlo", "measured"),
)
NAMES = {"model": "unlearned", "reference": "reference"}  # of the models in the table
LINES = [COLOURS[name] for name in ("blue", "orange", "green", "pink")]


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
    subject: str | None = None
    asking: Asking = field(default_factory=Asking)
    layers: Sequence[Natural] = ()
    noise_stds: Sequence[Multiple] = ("0.3x", "1x", "3x")
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Plan:
    """A request that can be run, with its questions and tokens read."""

    request: Request
    part: Part
    perturbation: Perturbation


def check(request: Request) -> Plan:
    """Read the questions and tokens. Raises UsageError before any weights are read."""
    for name in (request.model, request.reference):
        config = load_config(locate(name))
        architecture_of(config.model_type)
        last = config.num_hidden_layers - 1
        for layer in request.layers:
            require(0 <= layer <= last, "layers", layer, f"is not a block of {name}: 0 to {last}")
    for std in request.noise_stds:
        require(resolve(std, 1.0, "noise-std") > 0, "noise-std", std, "must be above 0")
    resolve_device(request.device)
    check_writable(request.out, "out")
    part = load_part(request.questions, request.subject, None, request.asking)
    count = len(part.questions)
    remedy = f"are too few; give {FEWEST_QUESTIONS} or more"
    require(count >= FEWEST_QUESTIONS, "questions", count, remedy)
    tokens = load_tokens(request.forget_tokens)
    return Plan(request, part, Perturbation(tokens, request.position, (), request.sentence))


@dataclass(frozen=True)
class Measured:
    """What was measured on one model: `reports` by layer and noise."""

    fingerprint: str
    shifts: Shifts
    reports: Sequence[LayerReport]


def run(plan: Plan, progress: Progress = SILENT) -> TableData:
    """Measure, compare, and write `theory.json`, `theory.md` and the figure; returns the table."""
    request, out = plan.request, plan.request.out
    found = {role: _measure(plan, getattr(request, role), progress) for role in NAMES}
    rows = [[NAMES[role], *_cells(each)] for role, own in found.items() for each in own.reports]
    save(draw(found["model"]), out / "theory")
    write_text(out / "theory.md", markdown_table(HEAD, rows))
    document = {
        "schema_version": SCHEMA_VERSION,
        "model": request.model,
        "reference": request.reference,
        "fingerprints": {role: own.fingerprint for role, own in found.items()},
        "questions": [question.id for question in plan.part.questions],
        "perturbation": asdict(plan.perturbation),
        "score": plan.part.settings.score,
        "seed": plan.part.settings.seed,
        "reports": {role: [asdict(each) for each in own.reports] for role, own in found.items()},
        "versions": versions(),
    }
    write_json(out / "theory.json", document)
    return TableData(CAPTION, HEAD, rows)


def quarter_points(num_layers: int) -> tuple[int, ...]:
    """The layers a quarter, a half and three quarters of the way up."""
    return tuple(sorted({num_layers * quarter // 4 for quarter in (1, 2, 3)}))


def _measure(plan: Plan, name: str, progress: Progress) -> Measured:
    loaded = load_model(name, device=plan.request.device, dtype=plan.request.dtype)
    progress.start(f"{name}, shifts", len(plan.part.questions))
    shifts = measure_shifts(loaded, plan.part, plan.perturbation, progress)
    reports = list(_reports(plan, loaded, shifts, progress))
    return Measured(fingerprint(loaded.model), shifts, reports)


def _reports(
    plan: Plan, loaded: LoadedModel, shifts: Shifts, progress: Progress
) -> Iterator[LayerReport]:
    layers = plan.request.layers or quarter_points(len(shifts.shift))
    progress.start(f"{loaded.name}, noise", len(layers) * len(plan.request.noise_stds))
    for layer in layers:
        if not shifts.shift[layer].any():
            raise UsageError(
                f"perturb: the tokens do not change the hidden states at layer {layer} at the last "
                "token of the prompt; use --position before or stem"
            )
        for given in plan.request.noise_stds:
            std = resolve(given, float(shifts.spread[layer]), "noise-std")
            flips = measure_flips(loaded, plan.part, shifts, layer, std)
            yield compare_layer(shifts, layer, std, flips)
            progress.advance()


def _cells(report: LayerReport) -> Iterator[str]:
    """The cells below `HEAD` after the model's name."""
    yield str(report.layer)
    yield from (f"{each:.3g}" for each in (report.noise_std, report.shift_variance))
    yield f"{report.systematic:.2f}"
    yield "" if report.normality is None else f"{report.normality:.2g}"
    yield from (f"{each:.3f}" for each in (report.isotropic, report.general))
    yield "{:.3f} ± {:.3f}".format(*report.monte_carlo)
    yield interval(report.measured)


def draw(found: Measured) -> Figure:
    """Draw effects g·ε/‖g‖ against normal quantiles (left) and flip rates by noise (right)."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    layers = dict.fromkeys(report.layer for report in found.reports)
    for layer, colour in zip(layers, cycle(LINES), strict=False):
        effects = found.shifts.effects(layer).numpy()
        quantiles, ordered = probplot(effects / max(effects.std(), 1e-12), fit=False)
        left.plot(quantiles, ordered, ".", color=colour, label=f"layer {layer}")
        own = [report for report in found.reports if report.layer == layer]
        x = [report.noise_std / math.sqrt(report.shift_variance) for report in own]
        look = {"color": colour, "marker": "o"}
        points(right, x, [report.measured for report in own], "", look)
        right.plot(x, [report.general for report in own], color=colour, label=f"layer {layer}")
        right.plot(x, [report.isotropic for report in own], color=colour, linestyle=":")
    left.axline((0, 0), slope=1, color="grey", linewidth=1)
    left.set(xlabel="normal quantiles", ylabel="effect g·ε/‖g‖ in standard deviations")
    right.set(
        xscale="log",
        xlabel="std of the noise / std of the shift, √(ν/η)",
        ylabel="flip rate (points measured, lines general, dotted isotropic)",
        ylim=(0, 0.6),
    )
    for axes in (left, right):
        axes.legend(frameon=False, fontsize="small")
    return figure
