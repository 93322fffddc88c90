"""The shared-prefix step equals the plain one: two whole models, full forward passes, hooks."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import product

import pytest
import torch
from benchmarks.plain import PlainStep

from defuse.data.collate import TextBatch, collate
from defuse.data.text import Encoded
from defuse.methods import (
    DPO,
    NPO,
    RMU,
    RSV,
    AdaptiveRMU,
    HiddenMSE,
    LogitKL,
    LogitMSE,
    Method,
    RepresentationMethod,
    Retain,
    SimNPO,
    Steering,
)
from defuse.models.decoder import Decoder
from defuse.models.freeze import frozen_model
from defuse.unlearning.activation_cache import Bucket, BucketCache
from defuse.unlearning.batches import StepBatch
from defuse.unlearning.config import Unlearning, trained_parameters
from defuse.unlearning.length_buckets import first_tokens
from defuse.unlearning.noise import GaussianNoise
from defuse.unlearning.objective import Objective
from defuse.unlearning.reference import ReferenceModel
from defuse.unlearning.step import SharedPrefixStep
from tests.helpers.architectures import tiny_model

METHODS: list[Method] = [
    RMU(),
    AdaptiveRMU(),
    AdaptiveRMU(scale_per="topic"),
    RSV(),
    NPO(),
    NPO(normalise="mean", reduction="batch"),
    DPO(refusals=("no",)),
    SimNPO(),
    SimNPO(gamma=0.3, reduction="batch"),
]
RETAIN: list[Retain] = [HiddenMSE(), LogitKL(), LogitMSE()]
NOISE = [None, GaussianNoise(std=0.5)]
LAYER = 2


def texts(lengths: Sequence[int], seed: int, answer_start: int = 1) -> list[Encoded]:
    rng = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 61, (n,), generator=rng).tolist() for n in lengths]
    return [Encoded(ids=tuple(ids), answer_start=answer_start) for ids in rows]


def batch_of(lengths: Sequence[int], name: str, seed: int, **options: object) -> TextBatch:
    items = [(name, row) for row in range(len(lengths))]
    return collate(texts(lengths, seed), items, pad_token_id=0, **options)  # type: ignore[arg-type]


def step_batch(**options: object) -> StepBatch:
    return StepBatch(
        batch_of([9, 4, 7], "forget", 1, **options),
        batch_of([6, 11, 3], "retain", 2, **options),
        batch_of([5, 8, 2], "refusal", 3, **options),
    )


def reference_for(
    decoder: Decoder, unlearning: Unlearning, cached: StepBatch | None = None
) -> ReferenceModel:
    """The reference model; each of the batches in `cached` is a bucket of its own."""
    first = unlearning.layers(decoder.num_layers)[0]
    if cached is None:
        return ReferenceModel(decoder, first)
    parts = [part for part in (cached.forget, cached.retain, cached.refusal) if part is not None]
    cache = BucketCache(Bucket(p.items[0][0], p.items, lambda p=p: p) for p in parts)
    return ReferenceModel(decoder, first, cache, cache)


def objective_for(unlearning: Unlearning) -> Objective:
    direction = torch.rand(32, generator=torch.Generator().manual_seed(5))
    steering = Steering(direction / direction.norm(), 3.0, 2.5)
    has_direction = isinstance(unlearning.method, RepresentationMethod)
    return Objective(
        "topic",
        steering if has_direction else None,
        weight=2.0,
        noise=dict.fromkeys(unlearning.noised_layers, 0.5),
        hidden_scale=1.7,
    )


def both(
    unlearning: Unlearning, kind: str, dtype: torch.dtype, cached: StepBatch | None = None
) -> tuple[PlainStep, SharedPrefixStep]:
    model = tiny_model(kind, dtype=dtype, attention="eager" if kind == "gemma2" else "sdpa")
    updated = deepcopy(model).requires_grad_(False)
    for name in trained_parameters(Decoder(model), unlearning):
        updated.get_parameter(name).requires_grad_(True)
    plain = PlainStep(updated, deepcopy(model), unlearning, seed=3)
    weights = {
        name: tensor.detach().clone().requires_grad_()
        for name, tensor in trained_parameters(Decoder(model), unlearning).items()
    }
    reference = reference_for(Decoder(model), unlearning, cached)
    return plain, SharedPrefixStep(reference, unlearning, weights, seed=3)


def unlike_the_start(plain: PlainStep, ours: SharedPrefixStep) -> None:
    """Move both from the start, where the retain loss and its gradient are 0 without noise."""
    rng = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, tensor in ours.weights.items():
            tensor += 0.05 * torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype)
            plain.updated.get_parameter(name).copy_(tensor)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def assert_equal_steps(unlearning: Unlearning, kind: str, batch: StepBatch) -> None:
    plain, ours = both(unlearning, kind, torch.float32)
    unlike_the_start(plain, ours)
    objective = objective_for(unlearning)
    with frozen_model(ours.decoder.model):
        losses = ours.backward(objective, batch, step=4)
    expected = plain.backward(objective, batch, step=4)
    for found, wanted in zip((losses.forget, losses.retain), expected, strict=True):
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    for name, tensor in ours.weights.items():
        wanted = plain.updated.get_parameter(name).grad
        assert tensor.grad is not None
        assert wanted is not None
        assert relative_error(tensor.grad, wanted) < 1e-5


@pytest.mark.parametrize("noise", NOISE, ids=["plain", "rna"])
@pytest.mark.parametrize("retain", RETAIN, ids=lambda retain: retain.name)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_losses_and_gradients_equal_the_plain_step(
    method: Method, retain: Retain, noise: GaussianNoise | None
) -> None:
    unlearning = Unlearning(method, retain, noise, layer=LAYER, train_layers=(1, 2))
    assert_equal_steps(unlearning, "llama", step_batch())


@pytest.mark.parametrize(
    ("retain", "layers"),
    [
        (HiddenMSE(), (0,)),
        (HiddenMSE(), (1, LAYER)),
        (LogitKL(), (0, 3)),
        (LogitKL(), (LAYER,)),
    ],
    ids=str,
)
def test_noise_at_other_layers_takes_equal_steps(retain: Retain, layers: tuple[int, ...]) -> None:
    noise = GaussianNoise(std=0.5, layers=layers)
    unlearning = Unlearning(RMU(), retain, noise, layer=LAYER, train_layers=(1, 2))
    assert_equal_steps(unlearning, "llama", step_batch())


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "qwen2", "gpt2", "gpt_neox", "phi3"])
@pytest.mark.parametrize("method", [RMU(), NPO()], ids=repr)
def test_every_kind_of_architecture_takes_equal_steps(kind: str, method: Method) -> None:
    retain = HiddenMSE() if isinstance(method, RMU) else LogitKL()
    unlearning = Unlearning(method, retain, NOISE[1], layer=LAYER, train_layers=(1, 2))
    assert_equal_steps(unlearning, kind, step_batch())


@pytest.mark.parametrize("layers", ["all", (0,), (2, 3), (3,)], ids=str)
def test_any_choice_of_trained_blocks_takes_equal_steps(layers: Sequence[int]) -> None:
    """Also blocks above the noised layer, where the noised reference starts in the prefix."""
    unlearning = Unlearning(
        NPO(), LogitKL(), NOISE[1], layer=1, train_layers=layers, train_parameters="all"
    )
    assert_equal_steps(unlearning, "llama", step_batch())


@pytest.mark.parametrize("method", [RMU(), SimNPO()], ids=repr)
def test_counting_padding_as_the_paper_s_code_does(method: Method) -> None:
    unlearning = Unlearning(
        method, LogitKL(), layer=LAYER, mask_padding=False, skip_first_token=False
    )
    batch = step_batch(mask_padding=False, skip_first_token=False)
    assert batch.retain.counted.all()
    assert_equal_steps(unlearning, "llama", batch)


def run_steps(unlearning: Unlearning, steps: int) -> tuple[PlainStep, SharedPrefixStep]:
    """AdamW on both, in float64 (Adam enlarges float32's rounding); ours has a cache.

    GPT-2, because Llama's norms and rotary angles are computed in float32 whatever the dtype.
    """
    objective, batch = objective_for(unlearning), step_batch()
    plain, ours = both(unlearning, "gpt2", torch.float64, batch)
    trained = [plain.updated.get_parameter(name) for name in ours.weights]
    first = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    second = torch.optim.AdamW(ours.weights.values(), lr=1e-3, weight_decay=0.0, fused=True)
    with frozen_model(ours.decoder.model):
        for step in range(steps):
            for optimiser in (first, second):
                optimiser.zero_grad()
            plain.backward(objective, batch, step)
            ours.backward(objective, batch, step)
            first.step()
            second.step()
    return plain, ours


@pytest.mark.parametrize(
    ("method", "retain"),
    [*product(METHODS, RETAIN)],
    ids=lambda part: repr(part),
)
def test_weights_after_ten_steps_equal_the_plain_ones(method: Method, retain: Retain) -> None:
    unlearning = Unlearning(method, retain, NOISE[1], layer=LAYER, train_layers=(1, 2))
    plain, ours = run_steps(unlearning, 10)
    for name, tensor in ours.weights.items():
        moved = (tensor - ours.decoder.model.get_parameter(name)).abs().max().item()
        assert moved > 1e-3
        difference = (tensor - plain.updated.get_parameter(name)).abs().max().item()
        assert difference < 1e-9
    assert ours.reference.hidden_cache.activations.nbytes > 0  # the cache was used


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("retain", RETAIN, ids=lambda retain: retain.name)
def test_noise_of_std_zero_equals_no_noise_bit_for_bit(method: Method, retain: Retain) -> None:
    gradients = []
    for noise in (None, GaussianNoise(std=0.0)):
        unlearning = Unlearning(method, retain, noise, layer=LAYER)
        plain, ours = both(unlearning, "llama", torch.float32)
        unlike_the_start(plain, ours)
        std = dict.fromkeys(unlearning.noised_layers, 0.0)
        objective = Objective("t", objective_for(unlearning).steering, 2.0, std)
        with frozen_model(ours.decoder.model):
            ours.backward(objective, step_batch(), 0)
        gradients.append([tensor.grad for tensor in ours.weights.values()])
    for without, zero in zip(*gradients, strict=True):
        assert torch.equal(without, zero)


@pytest.mark.parametrize("retain", RETAIN, ids=lambda retain: retain.name)
def test_the_retain_loss_starts_at_zero(retain: Retain) -> None:
    unlearning = Unlearning(RMU(), retain, layer=LAYER)
    _, ours = both(unlearning, "llama", torch.float64)
    loss = ours.retain_loss(objective_for(unlearning), step_batch().retain, 0)
    assert loss.item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_left_and_right_padding_give_the_same_loss(method: Method) -> None:
    """Left-padded rows are built here; the engine itself pads on the right."""
    unlearning = Unlearning(method, LogitKL(), layer=LAYER)
    losses = []
    for flipped in (False, True):
        plain, ours = both(unlearning, "llama", torch.float64)
        unlike_the_start(plain, ours)
        batch = step_batch()
        if flipped:
            batch = StepBatch(*(flip(b) for b in (batch.forget, batch.retain, batch.refusal) if b))
        objective = objective_for(unlearning)
        forget = ours.forget_loss(objective, batch)
        losses.append((forget.item(), ours.retain_loss(objective, batch.retain, 0).item()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


def flip(batch: TextBatch) -> TextBatch:
    """The same texts padded on the left."""
    rows = [batch.input_ids[row, span].tolist() for row, span in enumerate(batch.spans)]
    encoded = [Encoded(ids=tuple(ids), answer_start=1) for ids in rows]
    left = collate(encoded, batch.items, pad_token_id=0, mask_padding=False)
    real = torch.zeros_like(left.counted)
    for row, span in enumerate(left.spans):
        real[row, span] = True
    counted = left.counted & real
    keep = real.flatten()[left.predicted_at + 1] & real.flatten()[left.predicted_at]
    return replace(
        batch,
        input_ids=left.input_ids,
        attention_mask=real,
        spans=left.spans,
        counted=counted,
        counted_at=counted.flatten().nonzero()[:, 0],
        predicted_at=left.predicted_at[keep],
        labels=left.labels[keep],
        sequence=left.sequence[keep],
    )


def test_a_kept_text_gives_the_same_bits_in_whatever_batch_asks_for_it_first() -> None:
    """What lets a resumed run equal an undisturbed one: three texts, asked for in two orders."""
    unlearning = Unlearning(NPO(), LogitKL(), NOISE[1], layer=LAYER)
    found = []
    for order in ([0, 1, 2], [2, 1, 0]):
        _, ours = both(unlearning, "llama", torch.float32)
        encoded, whole = texts([9, 4, 7], 1), batch_of([9, 4, 7], "forget", 1)
        cache = BucketCache([Bucket("all", whole.items, lambda whole=whole: whole)])
        reference = replace(ours.reference, hidden_cache=cache)
        alone = {row: collate([encoded[row]], [("forget", row)], pad_token_id=0) for row in order}
        states = {r: reference.hidden(reference.start(b), LAYER + 1) for r, b in alone.items()}
        found.append([states[row] for row in range(3)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("tokens", [0, 7, 12, 100])
def test_buckets_stay_within_their_tokens(tokens: int) -> None:
    buckets = [Bucket(str(size), (), lambda: step_batch().retain, size) for size in (3, 4, 5, 6)]
    kept = first_tokens(buckets, tokens)
    assert sum(bucket.tokens for bucket in kept) <= tokens
    assert kept == buckets[: len(kept)]


def test_only_answers_count_in_preference_losses() -> None:
    answered = collate(texts([6], 1, answer_start=4), [("a", 0)], pad_token_id=0)
    assert answered.predicted_at.tolist() == [3, 4]
    assert answered.labels.tolist() == answered.input_ids[0, 4:].tolist()
    assert answered.counted.sum().item() == 5  # hidden-state losses see the question too
