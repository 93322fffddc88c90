"""Which texts a step takes, and where randomness comes from."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from defuse.data.sampling import rows
from defuse.utils.random import generator

COUNTS = st.integers(1, 30)
SIZES = st.integers(1, 8)


def taken(turns: int, count: int, size: int, *, shuffle: bool, purpose: str = "bio") -> list[int]:
    how = {"seed": 3, "shuffle": shuffle, "purpose": purpose}
    return [row for turn in range(turns) for row in rows(turn, count, size, **how)]


@given(COUNTS, SIZES)
def test_without_shuffling_rows_come_in_file_order_again_and_again(count, size):
    assert taken(9, count, size, shuffle=False) == [i % count for i in range(9 * size)]


@given(COUNTS, SIZES)
def test_every_shuffled_round_takes_each_text_once(count, size):
    sequence = taken(-(-3 * count // size), count, size, shuffle=True)
    for lap in range(3):
        assert sorted(sequence[lap * count : (lap + 1) * count]) == list(range(count))


@given(COUNTS, SIZES, SIZES)
def test_the_order_does_not_depend_on_the_batch_size(count, one, other):
    first = taken(other, count, one, shuffle=True)
    assert first == taken(one, count, other, shuffle=True)


def test_rounds_and_purposes_have_orders_of_their_own():
    sequence = taken(2, 20, 20, shuffle=True)
    assert sequence[:20] != sequence[20:]
    assert sequence != taken(2, 20, 20, shuffle=True, purpose="cyber")


def test_a_generator_is_fixed_by_seed_and_purpose():
    def draw(seed: int, *purpose: str | int) -> list[float]:
        return torch.rand(3, generator=generator(seed, *purpose)).tolist()

    assert draw(1, "noise", 2) == draw(1, "noise", 2)
    others = [draw(2, "noise", 2), draw(1, "noise", 3), draw(1, "steer", 2), draw(1, "noise", "2")]
    assert draw(1, "noise", 2) not in others


def test_a_generator_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    torch.rand(3, generator=generator(1, "noise"))
    assert torch.equal(before, torch.get_rng_state())
