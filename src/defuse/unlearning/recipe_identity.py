"""What of a recipe decides its results, and what only says where and how to work."""

from collections.abc import Mapping
from typing import Any

from defuse.unlearning.recipe import Recipe
from defuse.unlearning.recipe_fields import TopicSource
from defuse.utils.config import dump, without_none
from defuse.utils.identity import digest

# Fields that say where and how to work, and do not change the result.
NOT_IDENTITY = ("output", "checkpoint_every", "shard", "recompute", "check_up")
# Fields that name a model, a device and files: the same ones may be in other places.
PLACES = ("model", "revision", "device")
TEXT_PLACES = ("forget", "retain", "triggers")


def identity_of(recipe: Recipe) -> Mapping[str, Any]:
    """What makes a recipe the same one, wherever and however often it writes."""
    fields = dump(recipe)
    return {field: value for field, value in fields.items() if field not in NOT_IDENTITY}


def recipe_essence(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that decide a run's results, wherever its files are.

    A field without a value is left out, so that one that a later version adds changes nothing.
    """
    return essence(dump(recipe))


def essence(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a recipe's fields, such as those in a file of version 0.1.0."""
    method = {name: value for name, value in fields["method"].items() if name != "refusals"}
    topics = [
        {name: value for name, value in topic.items() if name not in TEXT_PLACES}
        for topic in fields["topics"]
    ]
    left_out = (*NOT_IDENTITY, *PLACES)
    rest = {name: value for name, value in fields.items() if name not in left_out}
    return without_none({**rest, "method": method, "topics": topics})


class TextDigests:
    """Digests of the texts that recipes read; each file is read once."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def of(self, recipe: Recipe) -> str:
        """Equal for recipes that read equal texts."""
        refusals = getattr(recipe.unlearning().method, "refusals", ())
        return digest([[self._of_topic(topic) for topic in recipe.topics], list(refusals)])

    def _of_topic(self, topic: TopicSource) -> str:
        sources = repr((topic.forget, topic.retain, topic.triggers))
        if sources not in self._texts:
            built = topic.build()
            # Lists, as in the files of version 0.1.0: a digest is of the types, too.
            texts = [list(built.forget), list(built.retain), built.triggers]
            self._texts[sources] = digest(texts)
        return self._texts[sources]
