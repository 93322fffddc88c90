"""One call of `defuse theory`: shifts of two models, predictions and measurements."""

from collections.abc import Callable, Sequence
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
from defuse.questions import FORGET_TOKEN, Perturbation, Question
from defuse.report.format import interval, markdown_table
from defuse.report.plots import save
from defuse.utils.errors import UsageError, require
from defuse.utils.files import check_writable, write_json, write_text
from defuse.utils.provenance import versions
from defuse.utils.scales import resolve

OnStage = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True)
class Job:
    """What is measured on which model beside which `reference`, the model before unlearning.

    `layers`: () is a quarter, a half and three quarters of the way up. `noise_stds`: outright or as
    multiples ("1x") of the states' own standard deviation per unit at the layer.
    """

    model: str
    reference: str
    questions: Sequence[Question]
    perturbation: Perturbation
    settings: Settings
    out: Path
    layers: Sequence[int] = ()
    noise_stds: Sequence[str] = ("0.3x", "1x", "3x")
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Finding:
    """Reports of the model and of its reference, layer by layer and noise by noise."""

    model: Sequence[LayerReport]
    reference: Sequence[LayerReport]


def check(job: Job) -> None:
    """Raise UsageError for what cannot be run or written, before any weights are read."""
    for name in (job.model, job.reference):
        config = load_config(locate(name))
        architecture_of(config.model_type)
        last = config.num_hidden_layers - 1
        for layer in job.layers:
            require(0 <= layer <= last, "layers", layer, f"is not a block of {name}: 0 to {last}")
    for std in job.noise_stds:
        resolved = resolve(_number(std), 1.0, "noise-std")
        require(resolved > 0, "noise-std", std, "must be above 0")
    require(len(job.questions) > 1, "questions", len(job.questions), "are too few; give 2 or more")
    resolve_device(job.device)
    check_writable(job.out, "out")


def run(job: Job, on_stage: OnStage) -> Finding:
    """Measure, compare and write `theory.json`, `theory.md` and the figure into `job.out`."""
    seed = job.settings.seed
    pairs = [(q, job.perturbation.variants(q, seed)[FORGET_TOKEN]) for q in job.questions]
    found, measured = [], []
    for name in (job.model, job.reference):
        loaded = load_model(name, device=job.device, dtype=job.dtype)
        on_question = on_stage(name, len(pairs))
        shifts = measure_shifts(loaded, pairs, job.settings, on_question=on_question)
        layers = job.layers or quarter_points(Decoder(loaded.model).num_layers)
        found.append(_reports(job, loaded, shifts, layers, on_stage))
        measured.append(shifts)
    finding = Finding(*found)
    save(draw(finding.model, measured[0]), job.out / "theory")
    write_text(job.out / "theory.md", markdown(finding))
    write_json(job.out / "theory.json", _document(job, finding))
    return finding


def quarter_points(num_layers: int) -> tuple[int, ...]:
    """The layers a quarter, a half and three quarters of the way up."""
    return tuple(sorted({num_layers * quarter // 4 for quarter in (1, 2, 3)}))


def _reports(
    job: Job, loaded: LoadedModel, shifts: Shifts, layers: Sequence[int], on_stage: OnStage
) -> list[LayerReport]:
    done = on_stage(f"{loaded.name}, noise", len(layers) * len(job.noise_stds))
    reports = []
    for layer in layers:
        if not shifts.shift[layer].any():
            raise UsageError(
                f"perturb: the tokens do not move layer {layer}'s states at the prompt's last "
                "token; use --position before or stem"
            )
        for text in job.noise_stds:
            std = resolve(_number(text), float(shifts.spread[layer]), "noise-std")
            reports.append(compare_layer(loaded, job.questions, job.settings, shifts, layer, std))
            done(1)
    return reports


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


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


def table(finding: Finding) -> list[list[str]]:
    """Rows under `HEAD`."""
    return [
        [
            name,
            str(report.layer),
            f"{report.noise_std:.3g}",
            f"{report.shift_variance:.3g}",
            f"{report.systematic:.2f}",
            "" if report.normality is None else f"{report.normality:.2g}",
            f"{report.isotropic:.3f}",
            f"{report.general:.3f}",
            f"{report.monte_carlo[0]:.3f} ± {report.monte_carlo[1]:.3f}",
            interval(report.measured),
        ]
        for name, reports in (("unlearned", finding.model), ("reference", finding.reference))
        for report in reports
    ]


def markdown(finding: Finding) -> str:
    """The table for a page of documentation."""
    return markdown_table(HEAD, table(finding))


def _document(job: Job, finding: Finding) -> dict[str, Any]:
    return {
        "model": job.model,
        "reference": job.reference,
        "questions": [question.id for question in job.questions],
        "perturbation": asdict(job.perturbation),
        "score": job.settings.score,
        "seed": job.settings.seed,
        "reports": asdict(finding),
        "versions": versions(),
    }
