"""The recipe of the whole way: teach all, unlearn a part, compare with what was never taught it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from defuse.experiments.tofu.ask import NEW_TOKENS
from defuse.experiments.tofu.data import HUB
from defuse.finetune import FineTuning
from defuse.unlearning.recipe import Recipe
from defuse.utils.config import Count, Natural, dump, parse, parse_fields, read_fields
from defuse.utils.errors import UsageError, require

SHIPPED = Path(__file__).parent
# The models of each seed beside the arms, and the one that all start from.
BASE, FULL, GOLD = "base", "full", "gold"
# Fields that decide no answer, or only those of some models.
ASIDE = ("output", "unlearn", "arms", "seeds", "keep_models", "device")
# Fields of `defuse unlearn` that the whole way fills in itself.
FILLED = ("model", "revision", "output", "topics", "seed", "device", "dtype")


@dataclass(frozen=True, kw_only=True)
class WholeWay:
    """What `defuse tofu` is told.

    `data`: a hub id or a folder with TOFU's files. `forget_authors`, `retain_authors`: teach only
    so many of either part; None = all. `skip_authors`: leave out so many first, so that settings
    can be tuned on other authors than are reported. `asked`: questions of each set at most.
    `unlearn`: a recipe's fields without those that follow from the rest, and `topic` with those of
    its one topic. `arms`: names of models to unlearn, each with what differs from `unlearn`.
    `seeds`: each teaches, unlearns and compares anew. `keep_models`: keep the unlearned models once
    they have been asked.
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
    arms: dict[str, dict[str, Any]] = field(default_factory=lambda: {"none": {}})
    seeds: list[int] = field(default_factory=lambda: [1])
    keep_models: bool = False
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name in ("arms", "seeds"):
            require(bool(getattr(self, name)), name, getattr(self, name), "must not be empty")
        for arm in self.arms:
            if arm in (BASE, FULL, GOLD) or not arm.isidentifier():
                raise UsageError(
                    f"arms: {arm!r} names no arm; use one word other than {BASE}, {FULL} and {GOLD}"
                )
            self.unlearning(arm, self.seeds[0], self.model, Path(), Path())
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds: {self.seeds} must differ")

    @classmethod
    def from_fields(cls, given: object, where: str) -> "WholeWay":
        finetune = given.get("finetune") if isinstance(given, Mapping) else None
        if isinstance(finetune, Mapping) and "seed" in finetune:
            raise UsageError("finetune.seed: follows from seeds; leave it out")
        return parse_fields(cls, given, where)

    def to_fields(self) -> dict[str, Any]:
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        finetune = dump(self.finetune)
        del finetune["seed"]
        return {**own, "finetune": finetune}

    def finetuning(self, seed: int) -> FineTuning:
        """The settings of fine-tuning with one of `seeds`."""
        return replace(self.finetune, seed=seed)

    def unlearning(self, arm: str, seed: int, model: str, texts: Path, output: Path) -> Recipe:
        """The recipe that unlearns `texts`/forget.jsonl from `model` as `arm` says."""
        given = _merged(self.unlearn, self.arms[arm])
        if own := [field for field in FILLED if field in given]:
            raise UsageError(f"unlearn.{own[0]}: follows from the other fields; leave it out")
        topic = {
            "name": "authors",
            "forget": str(texts / "forget.jsonl"),
            "retain": str(texts / "retain.jsonl"),
            **given.pop("topic", {}),
        }
        filled = {
            "model": model,
            "output": str(output),
            "topics": [topic],
            "seed": seed,
            "device": self.device,
            "dtype": self.dtype,
        }
        return parse(Recipe, {**given, **filled}, "unlearn")

    def essence(self, name: str, seed: int) -> dict[str, Any]:
        """What decides the answers of one model, wherever they lie."""
        own = {name: value for name, value in dump(self).items() if name not in ASIDE}
        taught = own.pop("finetune")
        if name == BASE:
            return own
        del taught["checkpoint_every"]
        unlearn = _merged(self.unlearn, self.arms[name]) if name in self.arms else None
        return {**own, "finetune": taught, "unlearn": unlearn, "seed": seed}


def load_whole_way(path: Path, overrides: Sequence[str] = ()) -> WholeWay:
    """A recipe file, or one that ships ("smollm2"), with `field=value` overrides.

    Raises UsageError for the first thing wrong.
    """
    shipped = SHIPPED / f"{path.name}.yaml"
    path = shipped if not path.exists() and shipped.exists() else path
    return parse(WholeWay, read_fields(path, overrides), "")


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """`second`'s fields over `first`'s, mappings field by field."""
    merged = {**first, **second}
    for name in first.keys() & second.keys():
        if isinstance(first[name], Mapping) and isinstance(second[name], Mapping):
            merged[name] = _merged(first[name], second[name])
    return merged
