"""The parts of a recipe whose YAML form differs: names of files and losses build the real ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from defuse.data.corpora import load_refusals, load_texts
from defuse.data.text import Plain
from defuse.methods import METHODS, RETAIN_LOSSES, Method, Retain
from defuse.models.lora import LoRA
from defuse.questions import load_tokens
from defuse.unlearning.config import METHOD_KINDS, Topic, check_object
from defuse.utils.config import (
    UNCHECKED,
    Count,
    as_mapping,
    check_fields,
    dotted,
    dump,
    parse,
    parse_fields,
    parse_value,
)
from defuse.utils.errors import UsageError, require


@dataclass(frozen=True)
class TextSource:
    """Where texts come from, as `load_texts` takes it; in YAML a string is a source alone."""

    source: str
    field: str | None = None
    limit: Count | None = None
    min_characters: Count = 1
    max_characters: Count | None = None
    raw_lines: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def from_fields(cls, given: object, where: str) -> "TextSource":
        if isinstance(given, str):
            return cls(given)
        if not isinstance(given, Mapping):
            remedy = "write a file, a hub id or {source: …}"
            raise UsageError(f"{where}: {given!r} is no source of texts; {remedy}")
        return parse_fields(cls, given, where)

    def load(self, reach: int | None = None) -> list[Plain]:
        """Read the texts, but none after the first `reach`."""
        limits = [limit for limit in (self.limit, reach) if limit is not None]
        return load_texts(
            self.source,
            field=self.field,
            limit=min(limits, default=None),
            min_characters=self.min_characters,
            max_characters=self.max_characters,
            raw_lines=self.raw_lines,
        )


@dataclass(frozen=True)
class TopicSource:
    """A topic whose texts and triggers are not read yet; `settings` are its other fields."""

    settings: Topic
    forget: TextSource
    retain: TextSource
    triggers: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def from_fields(cls, given: object, where: str) -> "TopicSource":
        given = as_mapping(given, [field.name for field in fields(Topic)], where)
        rest = {name: value for name, value in given.items() if name != "triggers"}
        return cls(
            parse_fields(Topic, {**rest, "forget": (), "retain": ()}, where),
            _source(given, "forget", where),
            _source(given, "retain", where),
            parse_value(str | None, given.get("triggers"), dotted(where, "triggers")),
        )

    def to_fields(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("forget", "retain")}
        texts = {name: dump(source) for name, source in own.items()}
        return {**dump(self.settings), **texts, "triggers": self.triggers}

    @property
    def name(self) -> str:
        return self.settings.name

    def build(self, reach: int | None = None) -> Topic:
        """The topic with its texts and triggers read.

        `reach`: the number of texts that the steps can use. It has no effect on a topic that needs
        all its texts, to pack them or to find triggers.
        """
        triggers = () if self.triggers is None else load_tokens(self.triggers)
        finds_triggers = bool(self.settings.mix) and self.triggers is None
        reach = None if self.settings.packed or finds_triggers else reach
        return replace(
            self.settings,
            forget=self.forget.load(reach),
            retain=self.retain.load(reach),
            triggers=triggers,
        )


def _source(given: Mapping[str, Any], name: str, where: str) -> TextSource:
    if name not in given:
        raise UsageError(f"{dotted(where, name)}: is missing; add it")
    return parse(TextSource, given[name], dotted(where, name))


@dataclass(frozen=True)
class MethodSource:
    """A method; `refusals`: a file of refusals instead of the method's own."""

    method: Annotated[Method, UNCHECKED]
    refusals: str | None = None

    def __post_init__(self) -> None:
        check_object(self.method, METHOD_KINDS, "method", "RMU()")
        check_fields(self)

    @classmethod
    def from_fields(cls, given: object, where: str) -> "MethodSource":
        kind = METHODS.get(method_name(given))
        if kind is None or not isinstance(given, Mapping):
            known = ", ".join(METHODS)
            raise UsageError(
                f"{where}: {given!r} names no method; write {{name: …}} with one of {known}"
            )
        own = dict(as_mapping(given, ["name", *(field.name for field in fields(kind))], where))
        del own["name"]
        refusals = parse_value(str | None, own.pop("refusals", None), dotted(where, "refusals"))
        return cls(parse_fields(kind, own, where), refusals)

    def to_fields(self) -> dict[str, Any]:
        own = dump(self.method)
        refusals = {"refusals": self.refusals} if "refusals" in own else {}
        return {"name": self.name, **own, **refusals}

    @property
    def name(self) -> str:
        return getattr(self.method, "name", "")

    def build(self) -> Method:
        """The method with its refusals read."""
        if self.refusals is None:
            return self.method
        return replace(self.method, refusals=load_refusals(self.refusals))  # type: ignore[type-var, call-arg]


def method_name(given: object) -> str:
    """The name in a method's YAML form; "" if it has none."""
    name = given.get("name") if isinstance(given, Mapping) else None
    return name if isinstance(name, str) else ""


@dataclass(frozen=True)
class RetainSource:
    """A retain loss by its name."""

    loss: str

    def __post_init__(self) -> None:
        check_fields(self, "retain")
        known = f"is unknown; use one of {', '.join(RETAIN_LOSSES)}"
        require(self.loss in RETAIN_LOSSES, "retain.loss", self.loss, known)

    def build(self) -> Retain:
        """The retain loss."""
        return RETAIN_LOSSES[self.loss]()


@dataclass(frozen=True)
class Train:
    """The tensors to train; None is the library's choice (`Unlearning`)."""

    layers: Sequence[int] | Literal["all"] | None = None
    parameters: str | Sequence[str] | None = None
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        check_fields(self, "train")
