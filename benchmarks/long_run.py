"""Memory of a long run: `python -m benchmarks.long_run`.

Runs `defuse unlearn` for 20,000 steps and `defuse evaluate` on 100,000 questions with a tiny random
model, and prints the resident memory (VmRSS) after a quarter, a half, three quarters and all of the
work. Texts differ in length and repeat many times, so that all caches are full after the first
quarter. The answers to all questions stay in memory to the end, as they are the result.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.machine import resident
from defuse.evaluate import request as evaluation
from defuse.evaluate.run import run as evaluate
from defuse.unlearning import run as unlearning
from defuse.unlearning.recipe import Recipe
from defuse.utils.config import parse

WORDS = [f"w{number}" for number in range(500)]
LETTERS = [*"ABCD", "Answer", "Question", ":", ".", "\n"]
TEXTS, LONGEST = 400, 60
QUARTERS = 4
GROWTH = 1.05  # between the first quarter and the end


class MemoryAtQuarters:
    """Progress that notes the resident memory (MiB) at each quarter of the stage `wanted`."""

    def __init__(self, wanted: str) -> None:
        self.wanted, self.found = wanted, []
        self._total, self._done, self._counts = 0, 0, False

    def start(self, name: str, total: int) -> None:
        self._counts = self.wanted in name
        if self._counts:
            self._total, self._done = total, 0

    def advance(self, count: int = 1, note: str = "") -> None:  # noqa: ARG002
        if not self._counts:
            return
        self._done += count
        while self._done * QUARTERS >= self._total * (len(self.found) + 1):
            self.found.append(resident("VmRSS"))


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--questions", type=int, default=100_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        print("resident memory, MiB      1/4     1/2     3/4     end", flush=True)
        show(f"unlearn, {arguments.steps} steps", after_steps(folder, arguments.steps))
        show(f"{arguments.questions} questions", after_questions(folder, arguments.questions))


def make_model(folder: Path) -> None:
    """Write a random Llama of two blocks, and a tokenizer with a token a word."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", *LETTERS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)  # noqa: S106
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


def after_steps(folder: Path, steps: int) -> list[float]:
    """The memory while `defuse unlearn` takes its steps."""
    draw = random.Random(0)  # noqa: S311
    for kind in ("forget", "retain"):
        lines = (words(draw, draw.randint(5, LONGEST)) for _ in range(TEXTS))
        (folder / f"{kind}.txt").write_text("\n".join(lines))
    topic = {"name": "long", "coefficient": 1.0, "weight": 1.0}
    texts = {kind: str(folder / f"{kind}.txt") for kind in ("forget", "retain")}
    given = {
        "model": str(folder / "model"),
        "output": str(folder / "unlearned"),
        "method": {"name": "rmu"},
        "layer": 1,
        "train": {"layers": [0, 1]},
        "topics": [{**topic, **texts}],
        "steps": steps,
        "shuffle": True,
        "device": "cpu",
    }
    memory = MemoryAtQuarters("unlearning")
    unlearning.run(unlearning.check(parse(Recipe, given)), memory)
    return memory.found


def after_questions(folder: Path, count: int) -> list[float]:
    """The memory while `defuse evaluate` asks its questions."""
    file = folder / "questions.jsonl"
    with file.open("w") as lines:
        lines.writelines(f"{json.dumps(row)}\n" for row in questions(count))
    memory = MemoryAtQuarters("questions")
    wanted = evaluation.Request(
        (str(folder / "model"),), folder / "out.json", questions=str(file), device="cpu"
    )
    evaluate(evaluation.check(wanted), memory)
    return memory.found


def questions(count: int) -> Iterator[dict[str, object]]:
    draw = random.Random(1)  # noqa: S311
    for number in range(count):
        choices = [words(draw, draw.randint(1, 4)) for _ in range(4)]
        stem = words(draw, draw.randint(5, LONGEST))
        yield {"id": number, "question": stem, "choices": choices, "answer": draw.randrange(4)}


def words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(WORDS, k=count))


def show(name: str, quarters: list[float]) -> None:
    """Print a row of the table. Raises AssertionError if the memory grew."""
    print(f"{name:22}" + "".join(f"{value:8.0f}" for value in quarters), flush=True)
    assert quarters[-1] <= GROWTH * quarters[0], name


if __name__ == "__main__":
    main()
