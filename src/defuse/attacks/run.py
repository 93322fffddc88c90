"""`defuse attack`: check everything first, then run attack after attack and keep each result."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from defuse.attacks.data import FORGET, RETAIN, AttackData
from defuse.attacks.findings import Findings, open_findings
from defuse.attacks.old_results import read_old
from defuse.attacks.registry import ATTACKS, REFERENCE, RETRAINED, Target
from defuse.attacks.results import Result
from defuse.evaluate import Settings
from defuse.models.architectures import architecture_of
from defuse.models.load import (
    LoadedModel,
    load_config,
    load_model,
    load_outline,
    resolve_device,
    resolve_dtype,
)
from defuse.models.locate import locate
from defuse.store import ResultStore, check_log
from defuse.utils.config import check_fields
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, held
from defuse.utils.identity import model_identity, weights_checksum
from defuse.utils.progress import SILENT, Progress
from defuse.utils.provenance import fingerprint, versions

FINDINGS = "findings"  # a log for each attack, and the lock
OLD_FINDINGS = "notes"  # where version 0.1.0 had them
# The attacked model's own answers have these names in every attack: they are asked for once.
BEFORE = tuple(f"before/{name}" for name in (FORGET, RETAIN))


@dataclass(frozen=True)
class Request:
    """The model to attack, by which attacks and with what data; `out` is a folder.

    `configs`: the settings of each attack (`defuse.attacks.registry.make_configs`). `reference`:
    the model before unlearning. `retrained`: one that never saw the forget set. `sources`: where
    questions and texts come from, for the record. `skip_refused`: attacks that refuse the model or
    the data, or lack something, are left out.
    """

    model: str
    out: Path
    configs: Mapping[str, Any]
    data: AttackData
    reference: str | None = None
    retrained: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    sources: Mapping[str, Any] = field(default_factory=dict)
    skip_refused: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def others(self) -> dict[str, str]:
        """The other models that one of the attacks looks at."""
        given = {REFERENCE: self.reference, RETRAINED: self.retrained}
        wanted = {part for attack in self.configs for part in ATTACKS[attack].others}
        return {part: name for part, name in given.items() if name is not None and part in wanted}

    @cached_property
    def questions(self) -> str:
        """A digest of what is asked, and how."""
        sets = [[asdict(each) for each in questions] for questions in self.data.sets.values()]
        asked = json.dumps([sets, asdict(self.data.settings)], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """A request that can be run; `left_out` has a reason for each attack that is not part of it."""

    request: Request
    left_out: Mapping[str, str] = field(default_factory=dict)


def check(request: Request) -> Plan:
    """Raise UsageError for everything that cannot be run or written; no weights are read.

    With `request.skip_refused`, attacks that refuse something are left out, but not all of them.
    """
    check_writable(request.out, "out")
    resolve_device(request.device)
    resolve_dtype(request.dtype)
    left_out: dict[str, str] = {}
    request = _checked(request, partial(_check_given, request), left_out)
    outline = make_outline(request)
    request = _checked(request, partial(_check_target, request, outline), left_out)
    check_folder(request)
    return Plan(request, left_out)


def _checked(
    request: Request, check_attack: Callable[[str], None], left_out: dict[str, str]
) -> Request:
    """The request with those attacks that `check_attack` accepts; adds to `left_out`."""
    for attack in request.configs:
        try:
            check_attack(attack)
        except UsageError as error:
            if not request.skip_refused:
                raise
            left_out[attack] = str(error)
    accepted = {name: each for name, each in request.configs.items() if name not in left_out}
    if left_out and not accepted:
        raise UsageError(next(iter(left_out.values())))
    return replace(request, configs=accepted)


def _check_given(request: Request, attack: str) -> None:
    spec = ATTACKS[attack]
    for part in spec.needs:
        if part not in request.others:
            raise UsageError(f"{part}: missing; the attack {attack} needs --{part} MODEL")
    for each in spec.texts(request.configs[attack]):
        if not request.data.given_texts(each):
            raise UsageError(
                f"{each}-texts: missing; the attack {attack} needs --{each}-texts FILE, since "
                "the questions themselves would give their answers away"
            )


def _check_target(request: Request, outline: Target, attack: str) -> None:
    ATTACKS[attack].check_target(outline, request.configs[attack])


def make_outline(request: Request) -> Target:
    """The models without weights, and the data."""
    for name in (request.model, *request.others.values()):
        architecture_of(load_config(locate(name)).model_type)
    outline = load_outline(request.model, request.dtype)
    others = {
        part: load_outline(name, request.dtype).model for part, name in request.others.items()
    }
    return Target(outline.model, outline.tokenizer, request.data, **others)


def has_findings(request: Request, attack: str) -> bool:
    """Whether `out` has an attack's result, or the beginning of one."""
    return _log(request.out, attack).exists() or (request.out / f"{attack}.json").exists()


def check_folder(request: Request) -> None:
    """Raise UsageError for results in `out` of other questions, texts or settings."""
    for attack in ATTACKS:
        unfinished = request.out / OLD_FINDINGS / f"{attack}.jsonl"
        if unfinished.is_file() and not (request.out / f"{attack}.json").is_file():
            raise UsageError(
                f"out: {unfinished} holds unfinished work of version 0.1.0, which this version "
                "cannot resume; delete the file to start the attack again, or name another folder"
            )
    for attack in request.configs:
        identity = _identity(request, attack)
        _store(request, identity, partial_identity=True).get(attack)
        if (log := _log(request.out, attack)).exists():
            check_log(log, identity)


def run(plan: Plan, progress: Progress = SILENT) -> Iterator[Result]:
    """Yield the result of each attack; finished ones are read from `out`.

    A result is written, whole, when its attack is done. Until then its findings are kept below
    `out`, and the same request resumes from them. In memory are the attacked model and, while an
    attack runs, those other models that it looks at. Raises UsageError if another process works in
    `out`, or if results or findings there, of whatever attack, belong to another model, other
    questions or other settings.
    """
    request = plan.request
    with held(request.out / FINDINGS / "lock", "out", str(request.out)):
        progress.start("loading models", 1 + len(request.others))
        loaded = load_model(request.model, device=request.device, dtype=request.dtype)
        progress.advance(note=request.model)
        identities, samples = _identities(request, loaded, progress)
        known = {name: _known(request, name, each, samples) for name, each in identities.items()}
        findings = {
            name: open_findings(_log(request.out, name), each) for name, each in identities.items()
        }
        for attack in request.configs:
            yield known[attack] or _attack(
                request, loaded, attack, identities[attack], findings, progress
            )


def _identities(
    request: Request, loaded: LoadedModel, progress: Progress
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What the findings of each attack depend on; for attacks not requested, the common part.

    And each model's hash of all weights, by the hash of a sample that version 0.1.0 wrote.

    The other models are read here one at a time and released. An attack that looks at one reads it
    again: results of other models are refused before anything runs, and a model of 7B parameters
    that is only needed later would take memory from the attacks before.
    """
    whole = model_identity(loaded.model, loaded.tokenizer)
    names = ("weights", "configuration", "tokenizer", "precision")
    common = {"questions": request.questions, **{name: whole[name] for name in names}}
    samples, weights = {fingerprint(loaded.model): whole["weights"]}, {}
    for part, name in request.others.items():
        sample, weights[part] = _hashes(_load_other(request, part))
        samples[sample] = weights[part]
        progress.advance(note=name)
    own = {
        attack: _identity(request, attack)
        | {part: weights.get(part) for part in sorted(ATTACKS[attack].others)}
        for attack in request.configs
    }
    return {attack: own.get(attack, {}) | common for attack in ATTACKS}, samples


def _hashes(model: PreTrainedModel) -> tuple[str, str]:
    return fingerprint(model), weights_checksum(model)


def _load_other(request: Request, part: str) -> PreTrainedModel:
    return load_model(request.others[part], device=request.device, dtype=request.dtype).model


def _attack(
    request: Request,
    loaded: LoadedModel,
    attack: str,
    identity: Mapping[str, Any],
    findings: Mapping[str, Findings],
    progress: Progress,
) -> Result:
    for each in findings.values():
        findings[attack].adopt(each, BEFORE)
    spec = ATTACKS[attack]
    others = {part: _load_other(request, part) for part in spec.others & request.others.keys()}
    target = Target(loaded.model, loaded.tokenizer, request.data, **others)
    result = spec.run_on(target, request.configs[attack], findings[attack], progress)
    about = {
        "model": request.model,
        **request.others,
        "sources": dict(request.sources),
        "asked": _asked(request.data.settings),
        "device": str(target.model.device),
        "versions": versions(),
    }
    _store(request, identity).put(attack, result.as_json(), **about)
    return result


def read_results(out: Path) -> dict[str, Result]:
    """Read all finished results in a folder, in the order of `ATTACKS`."""
    store = ResultStore(out, {}, "out", read_old, partial=True)
    found = {attack: _read(store, attack) for attack in ATTACKS}
    return {attack: result for attack, result in found.items() if result is not None}


def _known(
    request: Request, attack: str, identity: Mapping[str, Any], samples: Mapping[str, str]
) -> Result | None:
    """The result of an attack if it is finished; of one not requested, common fields must agree."""
    store = _store(request, identity, samples, partial_identity=attack not in request.configs)
    return _read(store, attack)


def _read(store: ResultStore, attack: str) -> Result | None:
    value = store.get(attack)
    try:
        return None if value is None else Result.from_json(value)
    except ValueError as error:
        raise UsageError(
            f"{store.path(attack)}: is not the result of an attack; delete it"
        ) from error


def _store(
    request: Request,
    identity: Mapping[str, Any],
    samples: Mapping[str, str] | None = None,
    *,
    partial_identity: bool = False,
) -> ResultStore:
    read = partial(read_old, data=request.data, questions=request.questions, weights=samples or {})
    return ResultStore(request.out, identity, "out", read, partial=partial_identity)


def _identity(request: Request, attack: str) -> dict[str, Any]:
    """What an attack's findings depend on, as far as it is known without weights."""
    texts = [request.data.given_texts(each) for each in (FORGET, RETAIN)]
    digest = hashlib.sha256(repr(texts).encode()).hexdigest()
    return {
        "questions": request.questions,
        "texts": digest if ATTACKS[attack].reads_texts else None,
        "settings": asdict(request.configs[attack]),
    }


def _asked(settings: Settings) -> dict[str, Any]:
    """How questions were asked, for the record."""
    return {**asdict(settings), "few_shot": [question.id for question in settings.few_shot]}


def _log(out: Path, attack: str) -> Path:
    return out / FINDINGS / f"{attack}.jsonl"
