"""One call of `defuse attack`: everything checked, then a kind at a time, each kept when done."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedModel

from defuse.attacks.data import FORGET, RETAIN, Material
from defuse.attacks.dry_run import refused, rehearse
from defuse.attacks.notes import Notes, open_notes
from defuse.attacks.registry import GOLD, KINDS, REFERENCE, Target
from defuse.attacks.results import Result
from defuse.evaluate import Settings
from defuse.models.architectures import architecture_of
from defuse.models.load import (
    LoadedModel,
    load_config,
    load_model,
    load_outline,
    locate,
    resolve_device,
    resolve_dtype,
)
from defuse.utils.errors import UsageError
from defuse.utils.files import check_writable, held, write_json
from defuse.utils.provenance import fingerprint, versions

NOTES = "notes"
# The attacked model's own answers, by the name that every kind has for them: asked once for all.
BEFORE = tuple(f"before/{name}" for name in (FORGET, RETAIN))
OnFound = Callable[[str, str], None]  # a kind, and what it has found


@dataclass(frozen=True)
class Order:
    """What is attacked, how and with what; `out` is a folder.

    `configs`: the settings of each kind (`defuse.attacks.registry.configs`). `reference`: the model
    before unlearning. `gold`: a model that never knew the forget set. `sources`: where questions
    and texts came from, for the record.
    """

    model: str
    out: Path
    configs: Mapping[str, Any]
    material: Material
    reference: str | None = None
    gold: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    sources: Mapping[str, Any] = field(default_factory=dict)

    @property
    def others(self) -> dict[str, str]:
        """The other models that any of the attacks looks at, by their part."""
        named = {REFERENCE: self.reference, GOLD: self.gold}
        wanted = {part for kind in self.configs for part in KINDS[kind].others}
        return {part: name for part, name in named.items() if name is not None and part in wanted}

    @cached_property
    def questions(self) -> str:
        """A digest of what is asked, and how."""
        return _digest([*map(list, self.material.sets.values()), self.material.settings])


def check(order: Order) -> None:
    """Raise UsageError for what cannot be run or written, before any weights are read."""
    _check_given(order)
    check_known(order)
    rehearse(_outline(order), order.configs)


def without_refused(order: Order) -> tuple[Order, dict[str, str]]:
    """The order without the attacks that refuse what is there, and what each of them says.

    Raises UsageError as `check` does for all else, and where none is left.
    """
    _check_given(order)
    reasons = refused(_outline(order), order.configs)
    left = {name: config for name, config in order.configs.items() if name not in reasons}
    if reasons and not left:
        raise UsageError(next(iter(reasons.values())))
    possible = replace(order, configs=left)
    check_known(possible)
    return possible, reasons


def _check_given(order: Order) -> None:
    check_writable(order.out, "out")
    resolve_device(order.device)
    resolve_dtype(order.dtype)
    for name, kind in ((name, KINDS[name]) for name in order.configs):
        for part in kind.needs:
            if part not in order.others:
                raise UsageError(f"{part}: missing; the attack {name} needs --{part} MODEL")
        for each in kind.texts(order.configs[name]):
            if not order.material.given_texts(each):
                raise UsageError(
                    f"{each}-texts: missing; the attack {name} needs --{each}-texts FILE, since "
                    "working on the questions themselves would give their answers away"
                )


def _outline(order: Order) -> Target:
    for name in (order.model, *order.others.values()):
        architecture_of(load_config(locate(name)).model_type)
    outline = load_outline(order.model, order.dtype)
    others = {part: load_outline(name, order.dtype).model for part, name in order.others.items()}
    return Target(outline.model, outline.tokenizer, order.material, **others)


def check_known(order: Order) -> None:
    """Raise UsageError for results in `out` that are of other questions, texts or settings."""
    for kind in order.configs:
        _known(order.out, kind, _identity(order, kind))


def run(order: Order, on_found: OnFound = lambda *_: None) -> Iterator[Result]:
    """Every kind's result, in order; what is finished in `out` is read from there.

    A kind's result is written, whole, as soon as it is there. Until then its notes are kept below
    `out`, and the same order goes on from them after a kill. In memory are the attacked model and,
    while a kind runs, those others that it looks at. Raises UsageError if another process works in
    `out`, or if a result or notes there, of whatever kind, are of another model, other questions
    or other settings.
    """
    with held(order.out / NOTES / "lock", "out", str(order.out)):
        loaded = load_model(order.model, device=order.device, dtype=order.dtype)
        identities = _identities(order, loaded)
        known = {kind: _known(order.out, kind, each) for kind, each in identities.items()}
        notes = {
            kind: open_notes(_notes(order.out, kind), each, partial(on_found, kind))
            for kind, each in identities.items()
        }
        for kind in order.configs:
            yield known[kind] or _attack(order, loaded, kind, identities[kind], notes)


def _identities(order: Order, loaded: LoadedModel) -> dict[str, dict[str, Any]]:
    """What each kind's findings depend on; of kinds not in the order, what all depend on.

    The other models are read here, one at a time, and let go. A kind that looks at one reads it
    again: results of other models are refused before anything runs, and a model of 7B that waited
    in memory for its turn would be in the way of all that do without it.
    """
    common = {
        "questions": order.questions,
        "weights": fingerprint(loaded.model),
        "precision": str(loaded.model.dtype).removeprefix("torch."),
    }
    weights = {part: fingerprint(_load_other(order, part)) for part in order.others}
    own = {
        kind: _identity(order, kind)
        | {part: weights.get(part) for part in sorted(KINDS[kind].others)}
        for kind in order.configs
    }
    return {kind: own.get(kind, {}) | common for kind in KINDS}


def _load_other(order: Order, part: str) -> PreTrainedModel:
    return load_model(order.others[part], device=order.device, dtype=order.dtype).model


def _attack(
    order: Order,
    loaded: LoadedModel,
    kind: str,
    identity: Mapping[str, Any],
    notes: Mapping[str, Notes],
) -> Result:
    for each in notes.values():
        notes[kind].adopt(each, BEFORE)
    others = {part: _load_other(order, part) for part in KINDS[kind].others & order.others.keys()}
    target = Target(loaded.model, loaded.tokenizer, order.material, **others)
    result = KINDS[kind].run(target, order.configs[kind], notes[kind])
    record = {
        "model": order.model,
        **order.others,
        "sources": dict(order.sources),
        "asked": _asked(order.material.settings),
        "device": str(target.model.device),
        "versions": versions(),
    }
    write_json(_file(order.out, kind), {"about": identity, **record, "result": result.as_json()})
    return result


def read_results(out: Path) -> dict[str, Result]:
    """All finished results in a folder, in the order of `KINDS`."""
    found = {kind: _file(out, kind) for kind in KINDS}
    return {kind: _read(path)[1] for kind, path in found.items() if path.is_file()}


def _known(out: Path, kind: str, identity: Mapping[str, Any]) -> Result | None:
    """A result that is there already. Raises UsageError if it is about something else."""
    path = _file(out, kind)
    if not path.is_file():
        return None
    about, result = _read(path)
    wanted = json.loads(json.dumps(identity))
    if other := [name for name, value in wanted.items() if about.get(name) != value]:
        raise UsageError(
            f"out: {path} is of an attack with other {' and '.join(other)}; name another folder, "
            f"or delete it and {NOTES}/{kind}.jsonl"
        )
    return result


def _read(path: Path) -> tuple[Mapping[str, Any], Result]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return document["about"], TypeAdapter(Result).validate_python(document["result"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise UsageError(f"{path}: is no result of an attack; delete it") from error


def _identity(order: Order, kind: str) -> dict[str, Any]:
    """What a kind's findings depend on, as far as it is known without weights."""
    texts = [order.material.given_texts(each) for each in (FORGET, RETAIN)]
    return {
        "questions": order.questions,
        "texts": _digest(texts) if KINDS[kind].reads_texts else None,
        "settings": asdict(order.configs[kind]),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


def _asked(settings: Settings) -> dict[str, Any]:
    """How questions were asked, for the record."""
    return {**asdict(settings), "few_shot": [question.id for question in settings.few_shot]}


def _notes(out: Path, kind: str) -> Path:
    return out / NOTES / f"{kind}.jsonl"


def _file(out: Path, kind: str) -> Path:
    return out / f"{kind}.json"
