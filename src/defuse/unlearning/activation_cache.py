"""A cache of what the frozen model computes for each text.

The last bits of a text's hidden states depend on the other texts of its batch. A cached text is
therefore always computed in the same batch, its bucket. So a resumed run equals an uninterrupted
one to the last bit, and runs on the same model can share a cache.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from defuse.data.collate import Item, TextBatch


class ActivationCache:
    """Tensors per text of one frozen model in one precision, in memory.

    Pass one to several runs on the same model (`unlearn(…, cache=…)`) and they share it.
    """

    def __init__(self) -> None:
        self._results: dict[tuple[Hashable, str], Sequence[Tensor]] = {}

    def get_or_compute(
        self, kind: Hashable, bucket: str, compute: Callable[[], Sequence[Tensor]]
    ) -> Sequence[Tensor]:
        """The tensors of this kind for a bucket's texts, computed on first use."""
        if (kind, bucket) not in self._results:
            self._results[kind, bucket] = compute()
        return self._results[kind, bucket]

    @property
    def nbytes(self) -> int:
        """The memory that the tensors take."""
        return sum(tensor.nbytes for tensors in self._results.values() for tensor in tensors)

    def clear(self) -> None:
        """Drop all tensors."""
        self._results.clear()


@dataclass(frozen=True)
class Bucket:
    """Texts that the frozen model always computes together, `tokens` in all.

    `key`: a hash of all that the model reads of them.
    """

    key: str
    items: tuple[Item, ...]
    batch: Callable[[], TextBatch]
    tokens: int = 0


class BucketCache:
    """Cached results for the texts in `buckets`; other texts are computed anew each time."""

    def __init__(
        self, buckets: Iterable[Bucket] = (), activations: ActivationCache | None = None
    ) -> None:
        self.activations = activations or ActivationCache()
        self._places = {item: (b, row) for b in buckets for row, item in enumerate(b.items)}

    def rows(
        self,
        kind: Hashable,
        items: Sequence[Item],
        compute: Callable[[TextBatch], Sequence[Tensor]],
    ) -> list[Tensor] | None:
        """The result of `compute` for each text; None if one of them is in no bucket."""
        if not all(item in self._places for item in items):
            return None
        rows = []
        for bucket, row in (self._places[item] for item in items):
            tensors = self.activations.get_or_compute(
                kind, bucket.key, lambda bucket=bucket: compute(bucket.batch())
            )
            rows.append(tensors[row])
        return rows

    def hidden(
        self, kind: Hashable, batch: TextBatch, compute: Callable[[TextBatch], Tensor]
    ) -> Tensor:
        """Hidden states (batch, time, hidden): cached ones, 0 on padding, or `compute(batch)`."""

        def without_padding(bucket: TextBatch) -> list[Tensor]:
            hidden = compute(bucket)
            return [row[span].clone() for row, span in zip(hidden, bucket.spans, strict=True)]

        rows = self.rows(kind, batch.items, without_padding)
        return compute(batch) if rows is None else _pad(rows, batch)


def _pad(rows: Sequence[Tensor], batch: TextBatch) -> Tensor:
    padded = rows[0].new_zeros(*batch.input_ids.shape, rows[0].shape[-1])
    for row, span, cached in zip(padded, batch.spans, rows, strict=True):
        row[span] = cached
    return padded
