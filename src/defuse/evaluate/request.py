"""What a user asks of `defuse evaluate`, and the check that makes a plan of it."""

from dataclasses import dataclass, field
from pathlib import Path

from defuse.evaluate.answers import Part
from defuse.evaluate.perplexity import read_passage
from defuse.evaluate.plan import Plan, check_plan
from defuse.evaluate.sources import Asking, TokenFiles, build_perturbation, load_part
from defuse.evaluate.tasks import Suite, choose_suite, load_parts
from defuse.questions import Perturbation, Position, load_tokens
from defuse.utils.config import check_fields
from defuse.utils.errors import UsageError


@dataclass(frozen=True)
class Request:
    """Models, questions and tokens, as files, hub ids and names of suites.

    Questions come from one file or hub dataset (`questions`, with `subject` and the examples of
    `dev`), or from a `suite` (with `data` and `subjects`). The other fields are those of `Plan`,
    with files in place of their contents.
    """

    models: tuple[str, ...]
    out: Path
    questions: str | None = None
    subject: str | None = None
    dev: str | None = None
    suite: str | None = None
    data: str | None = None
    subjects: tuple[str, ...] = ()
    asking: Asking = field(default_factory=Asking)
    tokens: TokenFiles | None = None
    position: Position | None = None
    sentence: str | None = None
    reference: str | None = None
    text: str | None = None
    prompts: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    keep_text: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


def check(request: Request) -> Plan:
    """Read all questions, tokens and texts. Raises UsageError before any weights are read."""
    _check_source(request)
    own = _perturbation(request)
    suite = None if request.suite is None else choose_suite(request.suite, request.subjects)
    perturbation = own or (suite and suite.perturbation)
    if request.reference is not None and not (perturbation and perturbation.controls):
        raise UsageError(
            "reference: vulnerability needs perturbed questions and controls; give --perturb, and "
            "--control or --control-corpus"
        )
    plan = Plan(
        models=request.models,
        out=request.out,
        parts=_parts(request, suite),
        perturbation=perturbation,
        reference=request.reference,
        groups=suite.groups if suite else {},
        text=None if request.text is None else read_passage(request.text),
        prompts=None if request.prompts is None else load_tokens(request.prompts),
        device=request.device,
        dtype=request.dtype,
        sources=_sources(request),
        keep_text=request.keep_text,
    )
    check_plan(plan)
    return plan


def _check_source(request: Request) -> None:
    if (request.questions is None) == (request.suite is None):
        raise UsageError("questions: give one of --questions FILE and --suite NAME")
    of_file = {"subject": request.subject, "dev": request.dev}
    of_suite = {"data": request.data, "subjects": ", ".join(request.subjects) or None}
    needed, useless = ("suite", of_suite) if request.suite is None else ("questions", of_file)
    for name, value in useless.items():
        if value is not None:
            raise UsageError(f"{name}: {value} goes with --{needed}; leave it out")


def _parts(request: Request, suite: Suite | None) -> tuple[Part, ...]:
    if suite is not None:
        return tuple(load_parts(suite, request.data, request.asking))
    return (load_part(str(request.questions), request.subject, request.dev, request.asking),)


def _perturbation(request: Request) -> Perturbation | None:
    if request.tokens is None:
        if request.position or request.sentence:
            raise UsageError("perturb: missing; give a file of tokens, or no option about them")
        return None
    return build_perturbation(
        request.tokens,
        request.position or "choice",
        request.sentence,
        request.models[0],
        request.asking.seed,
    )


def _sources(request: Request) -> dict[str, object]:
    tokens = request.tokens
    return {
        "questions": request.questions,
        "suite": request.suite,
        "data": request.data,
        "subjects": ",".join(request.subjects) or None,
        "limit": request.asking.limit,
        "dev": request.dev,
        "perturb": tokens and tokens.forget,
        "control": tokens and tokens.control,
        "control_corpus": tokens and tokens.control_corpus,
        "text": request.text,
    }
