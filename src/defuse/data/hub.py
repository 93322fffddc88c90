"""Datasets of the Hugging Face hub, with one sentence for whatever prevents reading them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import GatedRepoError

from defuse.utils.errors import UsageError
from defuse.utils.text import reason_of


def read_dataset(source: str, split: str, *, stream: bool) -> Iterator[Any]:
    """The rows of a dataset: fetched one by one (`stream`), or stored in the hub's cache first.

    `source`: "id", "id:config" or "id:config:split" (else `split`); a folder that holds a dataset
    may replace the id. Raises UsageError for whatever cannot be read.
    """
    from datasets import load_dataset

    name, config, own_split = (*source.split(":", 2), "", "")[:3]
    part = own_split or split
    try:
        options = _csv_options(name, config or None)
        # A slice, such as train[:100], cannot be streamed.
        streaming = stream and "[" not in part
        yield from load_dataset(name, config or None, split=part, streaming=streaming, **options)
    except Exception as error:  # whatever a missing right, line or file makes of the libraries
        raise UsageError(refusal(source, error)) from error


def config_names(source: str) -> list[str]:
    """The configurations of a hub dataset. Raises UsageError for what is none."""
    from datasets import get_dataset_config_names

    try:
        return get_dataset_config_names(source)
    except Exception as error:  # as in `read_dataset`
        raise UsageError(refusal(source, error)) from error


def _csv_options(name: str, config: str | None) -> dict[str, Any]:
    """Options that read csv files of a dataset's folder as csv files are read: "NA" is a text."""
    if not Path(name).is_dir():
        return {}
    from datasets import load_dataset_builder

    builder = load_dataset_builder(name, config)
    is_csv = any(kind.__name__ == "Csv" for kind in type(builder).__mro__)
    return {"na_filter": False} if is_csv else {}


def refusal(source: str, error: Exception) -> str:
    """Why a dataset cannot be read, and the remedy."""
    if _is_gated(error):
        page = f"https://huggingface.co/datasets/{source.partition(':')[0]}"
        return f"{source}: is gated; ask for access at {page}, then log in with `hf auth login`"
    return (
        f"{source}: is neither a file nor a dataset that could be loaded as id:config:split "
        f"({reason_of(error)}); correct the name, or check the connection"
    )


def _is_gated(error: BaseException | None) -> bool:
    """Whether a gate is the cause: `datasets` repeats its sentence, other libraries the error."""
    if error is None:
        return False
    told = isinstance(error, GatedRepoError) or "is a gated dataset" in str(error)
    return told or _is_gated(error.__cause__ or error.__context__)
