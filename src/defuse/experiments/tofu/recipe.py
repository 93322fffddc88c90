"""The recipe of `defuse tofu`: what is taught, unlearned and asked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from defuse.evaluate.tasks.tofu.ask import NEW_TOKENS
from defuse.evaluate.tasks.tofu.data import HUB
from defuse.finetune import FineTuning
from defuse.unlearning.recipe import Recipe
from defuse.utils.config import (
    Count,
    Natural,
    check_fields,
    dump,
    parse,
    parse_fields,
    read_fields,
)
from defuse.utils.errors import UsageError, require

SHIPPED = Path(__file__).parent
# The models beside the unlearned ones: as downloaded, before unlearning, and retrained.
PRETRAINED, REFERENCE, RETRAINED = "pretrained", "reference", "retrained"
# How version 0.1.0 names the models, in its files and in the recipe that it ships.
OLD_NAMES = {
    PRETRAINED: "base",
    REFERENCE: "full",
    RETRAINED: "gold",
    "rna": "RNA",
    "mixing": "mixed",
}
TAKEN = {name for each in (PRETRAINED, REFERENCE, RETRAINED) for name in (each, OLD_NAMES[each])}
# Fields that do not change any answer, or only those of some models.
WITHOUT_EFFECT = ("output", "unlearn", "defences", "seeds", "keep_models", "device")


@dataclass(frozen=True, kw_only=True)
class TofuRecipe:
    """The settings of `defuse tofu`.

    `data`: a hub id or a folder with TOFU's files. `forget_authors`, `retain_authors`: teach only
    this many authors of either part; None is all. `skip_authors`: leave out this many first, so
    that settings can be tuned on other authors than those in the report. `asked`: at most this many
    questions of each set. `unlearn`: fields of `defuse unlearn`, without those that follow from the
    rest; `topic` has the fields of its one topic. `defences`: the models to unlearn by name, each
    with its differences from `unlearn`; version 0.1.0 says `arms`. `seeds`: each one teaches,
    unlearns and compares again. `keep_models`: keep unlearned models after they are asked.
    """

    model: str
    output: str
    data: str = HUB
    forget: Literal["forget01", "forget05", "forget10"] = "forget10"
    forget_authors: Count | None = None
    retain_authors: Count | None = None
    skip_authors: Natural = 0
    asked: Count | None = None
    new_tokens: Count = NEW_TOKENS
    finetune: FineTuning = FineTuning()  # noqa: RUF009 (frozen)
    unlearn: dict[str, Any]
    defences: dict[str, dict[str, Any]] = field(default_factory=lambda: {"none": {}})
    seeds: list[int] = field(default_factory=lambda: [1])
    keep_models: bool = False
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("defences", "seeds"):
            require(bool(getattr(self, name)), name, getattr(self, name), "must not be empty")
        for name in self.defences:
            if name in TAKEN or not name.isidentifier():
                taken = ", ".join(sorted(TAKEN))
                raise UsageError(f"defences: {name!r} is no name; use one word other than {taken}")
            self.unlearning(name, self.seeds[0], self.model, Path(), Path())
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds: {self.seeds} must differ")

    @classmethod
    def from_fields(cls, given: object, where: str) -> "TofuRecipe":
        if isinstance(given, Mapping):
            finetune = given.get("finetune")
            if isinstance(finetune, Mapping) and "seed" in finetune:
                raise UsageError("finetune.seed: follows from seeds; leave it out")
            given = {"defences" if name == "arms" else name: own for name, own in given.items()}
        return parse_fields(cls, given, where)

    def to_fields(self) -> dict[str, Any]:
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        finetune = dump(self.finetune)
        del finetune["seed"]
        return {**own, "finetune": finetune}

    def unlearning(self, defence: str, seed: int, model: str, texts: Path, output: Path) -> Recipe:
        """The recipe that unlearns `texts`/forget.jsonl from `model` with a defence."""
        given = _merged(self.unlearn, self.defences[defence])
        topic = {
            "name": "authors",
            "forget": str(texts / "forget.jsonl"),
            "retain": str(texts / "retain.jsonl"),
            **given.pop("topic", {}),
        }
        filled = {
            "model": model,
            "revision": None,
            "output": str(output),
            "topics": [topic],
            "seed": seed,
            "device": self.device,
            "dtype": self.dtype,
        }
        for name in given.keys() & filled.keys():
            raise UsageError(f"unlearn.{name}: follows from the other fields; leave it out")
        return parse(Recipe, {**given, **filled}, "unlearn")

    def identity(self, name: str, seed: int | None) -> dict[str, Any]:
        """Everything that a model's answers depend on, wherever its files are."""
        own = {name: value for name, value in dump(self).items() if name not in WITHOUT_EFFECT}
        taught = own.pop("finetune")
        if name == PRETRAINED:
            return own
        del taught["checkpoint_every"]
        unlearn = _merged(self.unlearn, self.defences[name]) if name in self.defences else None
        return {**own, "finetune": taught, "unlearn": unlearn, "seed": seed}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> TofuRecipe:
    """A recipe file, or a shipped one by its name ("smollm2"), with `field=value` overrides.

    Raises UsageError for the first wrong field.
    """
    shipped = SHIPPED / f"{path.name}.yaml"
    path = shipped if not path.exists() and shipped.exists() else path
    name = "arms" if "arms" in read_fields(path) else "defences"
    overrides = [re.sub(r"^(arms|defences)\b", name, override) for override in overrides]
    return parse(TofuRecipe, read_fields(path, overrides), "")


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """`second`'s fields over `first`'s; mappings are merged field by field."""
    merged = {**first, **second}
    for name in first.keys() & second.keys():
        if isinstance(first[name], Mapping) and isinstance(second[name], Mapping):
            merged[name] = _merged(first[name], second[name])
    return merged
