"""Datasets of the Hugging Face hub, with one sentence for whatever prevents reading them."""

from collections.abc import Iterator
from typing import Any

from huggingface_hub.errors import GatedRepoError

from defuse.utils.errors import UsageError


def read_dataset(source: str, split: str, *, stream: bool) -> Iterator[Any]:
    """The rows of a dataset: fetched one by one (`stream`), or stored in the hub's cache first.

    `source`: "id", "id:config" or "id:config:split" (else `split`); a folder that holds a dataset
    may replace the id. Raises UsageError for whatever cannot be read.
    """
    from datasets import load_dataset

    name, config, own_split = (*source.split(":", 2), "", "")[:3]
    try:
        yield from load_dataset(name, config or None, split=own_split or split, streaming=stream)
    except Exception as error:  # whatever a missing right, line or file makes of the libraries
        raise UsageError(refusal(source, error)) from error


def refusal(source: str, error: Exception) -> str:
    """Why a dataset cannot be read, and the remedy."""
    if _is_gated(error):
        page = f"https://huggingface.co/datasets/{source.partition(':')[0]}"
        return f"{source}: is gated; ask for access at {page}, then log in with `hf auth login`"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"{source}: is neither a file nor a dataset that could be loaded as id:config:split "
        f"({reason}); correct the name, or check the connection"
    )


def _is_gated(error: BaseException | None) -> bool:
    """Whether a gate is the cause: `datasets` repeats its sentence, other libraries the error."""
    if error is None:
        return False
    told = isinstance(error, GatedRepoError) or "is a gated dataset" in str(error)
    return told or _is_gated(error.__cause__ or error.__context__)
