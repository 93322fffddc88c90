"""The tiny language models: one taught the whole world, one that never saw the forget domain."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)

from defuse.experiments.synthetic.language import BOS_ID, EOS_ID, PAD_ID
from defuse.experiments.synthetic.lessons import IGNORED, Batch, Lessons, Quiz
from defuse.experiments.synthetic.scaffold import scaffold_loss
from defuse.experiments.synthetic.world import World

STEPS, LEARNING_RATE, WARMUP = 1400, 2e-3, 50
CLIP = 1.0  # of the gradient norm; without it the loss leaps up at this rate
# Shares of the steps after which the scaffold begins to fade, and after which it is gone.
SCAFFOLDED, ALONE = 0.5, 0.65
LAYERS, HIDDEN = 6, 128


@dataclass(frozen=True)
class Progress:
    """How far a training is; `loss` of statements and of answers (nats)."""

    step: int
    steps: int
    statement_loss: float
    answer_loss: float


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A random Llama of 6 layers × 128 over the tokenizer's words."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        # Tied: what is recalled and what stands among the choices then look alike.
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        # Of the size that keeps a normed vector's: at the usual 0.02 so small a model is slow.
        initializer_range=0.05,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def teach(
    world: World,
    tokenizer: PreTrainedTokenizerBase,
    *,
    without: str | None = None,
    seed: int = 0,
    steps: int = STEPS,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> PreTrainedModel:
    """A model that knows the world's facts, but for those of the domain `without`.

    The losses of statements and of answers are averaged apart: over all tokens alike, answers
    would be lost among them.
    """
    hidden = set() if without is None else {fact.id for fact in world.of(without)}
    facts = [fact for fact in world.facts if fact.id not in hidden]
    lessons = Lessons(world, facts, tokenizer, seed)
    model = new_model(tokenizer, seed).train()
    model.set_attn_implementation("eager")  # the scaffold reads attentions
    optimiser = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    schedule = get_cosine_schedule_with_warmup(optimiser, WARMUP, steps)
    for step in range(1, steps + 1):
        statement_loss = _statement_loss(model, lessons.statement_batch())
        statement_loss.backward()
        held = min(1.0, max(0.0, (ALONE - step / steps) / (ALONE - SCAFFOLDED)))
        if not held and model.config._attn_implementation == "eager":
            model.set_attn_implementation("sdpa")
        answer_loss, help_loss = _quiz_losses(model, lessons.quiz(), held)
        (answer_loss + held * help_loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        on_step(Progress(step, steps, statement_loss.item(), answer_loss.item()))
    return model.eval()


def _statement_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean over the tokens to predict; the head is applied only there."""
    hidden = model.get_decoder()(input_ids=batch.input_ids).last_hidden_state
    wanted = batch.labels != IGNORED
    head: nn.Module = model.get_output_embeddings()  # type: ignore[assignment]
    return F.cross_entropy(head(hidden[wanted]), batch.labels[wanted])


def _quiz_losses(model: PreTrainedModel, quiz: Quiz, held: float) -> tuple[Tensor, Tensor]:
    """The answers' loss and the scaffold's."""
    output = model.get_decoder()(
        input_ids=quiz.input_ids, output_hidden_states=held > 0, output_attentions=held > 0
    )
    head: nn.Module = model.get_output_embeddings()  # type: ignore[assignment]
    logits = head(output.last_hidden_state[quiz.rows, quiz.ends])
    answer_loss = F.cross_entropy(logits, quiz.letters[quiz.rows, quiz.answers])
    return answer_loss, scaffold_loss(model, output, quiz) if held else torch.zeros(())
