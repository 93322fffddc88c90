"""What attacks refuse, found without weights: each is begun, up to its first piece of work."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from defuse.attacks.notes import Notes
from defuse.attacks.registry import KINDS, Target
from defuse.utils.errors import UsageError


def rehearse(target: Target, configs: Mapping[str, Any]) -> None:
    """Raise UsageError for what any of the attacks refuses; `target`'s models need no weights.

    An attack looks at its settings, questions, texts and models before it finds anything.
    """
    for name, config in configs.items():
        with suppress(_Begun):
            KINDS[name].run(target, config, _Rehearsal())


def refused(target: Target, configs: Mapping[str, Any]) -> dict[str, str]:
    """Which of the attacks refuse what, in a sentence each."""
    reasons = {}
    for name, config in configs.items():
        try:
            rehearse(target, {name: config})
        except UsageError as error:
            reasons[name] = str(error)
    return reasons


class _Begun(Exception):  # noqa: N818 (no error)
    """All that comes before the first finding has gone well."""


class _Rehearsal(Notes):
    """Notes of an attack that shall find nothing."""

    def once(self, name: str, find: Callable[[], object]) -> NoReturn:  # noqa: ARG002
        raise _Begun
