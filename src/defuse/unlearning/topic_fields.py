"""Topics as a recipe writes them: their texts are still names of files or datasets."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from defuse.data.corpora import load_texts
from defuse.data.text import Plain
from defuse.questions import load_tokens
from defuse.unlearning.config import Topic
from defuse.utils.config import Fields, Multiple, Number, Whole


class CorpusFields(Fields):
    """Where a recipe's texts come from, as `load_texts` takes it; a string is a source alone."""

    source: str
    field: str | None = None
    limit: Whole | None = None
    min_characters: Whole = 1
    raw_lines: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: object) -> object:
        if isinstance(given, str):
            return {"source": given}
        if not isinstance(given, Mapping):
            raise ValueError(f"{given!r} is no corpus; write a file, a hub id or {{source: …}}")
        return given

    def load(self, reach: int | None = None) -> list[Plain]:
        """The texts, but none after the first `reach`."""
        limits = [limit for limit in (self.limit, reach) if limit is not None]
        how = self.model_dump(exclude={"source", "limit"})
        return load_texts(self.source, limit=min(limits, default=None), **how)


class TopicFields(Fields):
    """A topic; texts and triggers are read by `build`."""

    name: str
    forget: CorpusFields
    retain: CorpusFields
    forget_length: Annotated[int, Field(gt=1)] = Topic.forget_length
    retain_length: Annotated[int, Field(gt=1)] = Topic.retain_length
    coefficient: Multiple | None = None
    scale: Multiple | None = None
    weight: Annotated[Number, Field(ge=0)]
    packed: bool = Topic.packed
    triggers: str | None = None
    mix: Annotated[Number, Field(ge=0, le=1)] | None = None

    def build(self, reach: int | None = None) -> Topic:
        """The topic with its texts and triggers read.

        `reach`: the steps use no text after so many, so that none has to be read; for a topic that
        needs its whole corpora, to pack them or to find triggers, it counts for nothing.
        """
        own = self.model_dump(exclude={"forget", "retain", "triggers"}, exclude_none=True)
        if self.triggers is not None:
            own["triggers"] = load_tokens(self.triggers)
        mines = bool(self.mix) and self.triggers is None
        reach = None if self.packed or mines else reach
        return Topic(forget=self.forget.load(reach), retain=self.retain.load(reach), **own)
