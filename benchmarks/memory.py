"""Memory of unlearning from a large checkpoint: blocks 0 to 7 are read, changed tensors written.

    python -m benchmarks.memory                      # a stand-in of 1 GB, beside the plain way
    python -m benchmarks.memory --shape zephyr-7b    # 14.5 GB on disk
    python -m benchmarks.memory --shape llama-70b --layers 9 --trained 1 --batch-size 1

Writes a random bfloat16 checkpoint of that shape, takes steps of RMU at layer 7 in a process of its
own and saves the result. `part` reads and writes what is needed, `whole` everything, `plain` is
published code's way: two models and full forward passes. Peaks are of resident memory (VmHWM: what
the process has written, and the pages of mapped files that it has touched) above what was resident
after all imports; on a GPU, of what PyTorch has allocated. Files are dropped from the system's
cache first, so that what is read is read from disk.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, PreTrainedTokenizerFast

from benchmarks.machine import resident
from benchmarks.plain import PlainStep
from benchmarks.sides import adamw, objective_for
from defuse.data.collate import TextBatch, collate
from defuse.data.text import Encoded
from defuse.methods import RMU
from defuse.models.decoder import Decoder
from defuse.models.load import LoadedModel, load_model, skeleton
from defuse.models.partial_load import load_part
from defuse.models.safetensors_index import INDEX
from defuse.models.save import save_changed, save_model
from defuse.unlearning.batches import StepBatch
from defuse.unlearning.config import Topic, Training, Unlearning, trained_parameters
from defuse.unlearning.train import unlearn
from defuse.utils.random import generator

LAYER, SEED = 7, 0
LARGEST_SHARD = 2 * 10**9
PROMISED = 0.5  # of the checkpoint's size
FEW_TOKENS = 256  # in a batch, for the promise to hold on a CPU
PROMISED_ON_GPU = 8 * 2**30  # Zephyr-7B's shape at 4 × 512
HALF, STATE = 2, 4 + 8 + 4  # bytes per weight: bfloat16; float32 master, moments and gradient
SHAPES: Mapping[str, PreTrainedConfig] = {
    "small": MistralConfig(
        hidden_size=1024, intermediate_size=3584, num_attention_heads=8, num_key_value_heads=2
    ),
    "zephyr-7b": MistralConfig(),
    "llama-70b": LlamaConfig(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    ),
}
WAYS = ("part", "whole", "plain")


def write_checkpoint(config: PreTrainedConfig, folder: Path) -> int:
    """A random sharded checkpoint, one shard in memory at a time. Returns its bytes."""
    config.save_pretrained(folder)
    tokenizer_of(config.vocab_size).save_pretrained(folder)
    parameters = skeleton(config, torch.bfloat16).named_parameters()
    shapes = {name: parameter.shape for name, parameter in parameters}
    size = sum(HALF * shape.numel() for shape in shapes.values())
    shards = list(in_shards(shapes, min(LARGEST_SHARD, size // 8)))
    places = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: random(name, shapes[name]) for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return size


def in_shards(shapes: Mapping[str, torch.Size], largest: int) -> Iterator[list[str]]:
    names, size = [], 0
    for name, shape in shapes.items():
        if names and size + HALF * shape.numel() > largest:
            yield names
            names, size = [], 0
        names.append(name)
        size += HALF * shape.numel()
    yield names


def random(name: str, shape: torch.Size) -> Tensor:
    tensor = torch.ones(shape, dtype=torch.bfloat16)
    return tensor if "norm" in name else tensor.normal_(std=0.02, generator=generator(SEED, name))


def tokenizer_of(vocab_size: int) -> PreTrainedTokenizerFast:
    """A token a word: a text has just as many as are asked for."""
    words = {f"w{number}": number for number in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0")  # noqa: S106


def texts(name: str, arguments: argparse.Namespace) -> list[str]:
    """As many as all steps take: none comes again."""
    shape = (arguments.steps * arguments.batch_size, arguments.length)
    rows = torch.randint(1, 32000, shape, generator=generator(SEED, name)).tolist()
    return [" ".join(f"w{number}" for number in row) for row in rows]


def unlearning_for(arguments: argparse.Namespace) -> Unlearning:
    first = LAYER + 1 - arguments.trained
    return Unlearning(RMU(), layer=LAYER, train_layers=range(first, LAYER + 1))


def take_steps(loaded: LoadedModel, arguments: argparse.Namespace) -> Mapping[str, Tensor]:
    forget, retain = texts("forget", arguments), texts("retain", arguments)
    lengths = {"forget_length": arguments.length, "retain_length": arguments.length}
    topic = Topic("bench", forget, retain, **lengths)
    training = Training(steps=arguments.steps, batch_size=arguments.batch_size, keep_gib=0)
    given = (loaded.model, loaded.tokenizer, [topic], unlearning_for(arguments), training)
    return unlearn(*given, in_place=True).changed


def take_plain_steps(loaded: LoadedModel, arguments: argparse.Namespace) -> Mapping[str, Tensor]:
    """Two whole models, full forward passes, AdamW on bfloat16 itself."""
    unlearning = unlearning_for(arguments)
    updated, reference = loaded.model.requires_grad_(False), deepcopy(loaded.model)
    trained = trained_parameters(Decoder(updated), unlearning)
    optimiser = adamw([parameter.requires_grad_() for parameter in trained.values()])
    step = PlainStep(updated, reference, unlearning, SEED)
    objective = objective_for(unlearning, updated.config.hidden_size)
    for turn in range(arguments.steps):
        batches = (batch_of(loaded, name, turn, arguments) for name in ("forget", "retain"))
        step.backward(objective, StepBatch(*batches), turn)
        optimiser.step()
        optimiser.zero_grad()
    return trained


def batch_of(loaded: LoadedModel, name: str, turn: int, arguments: argparse.Namespace) -> TextBatch:
    rows = range(turn * arguments.batch_size, (turn + 1) * arguments.batch_size)
    ids = loaded.tokenizer(texts(name, arguments))["input_ids"]
    encoded = [Encoded(tuple(ids[row]), 1) for row in rows]
    items = [(name, row) for row in rows]
    return collate(encoded, items, pad_token_id=0, device=loaded.model.device)


def print_figures(arguments: argparse.Namespace) -> None:
    """In the child: load, train and save in one of the ways, and print what it took as JSON."""
    torch.set_num_threads(arguments.threads)
    before, began, name = resident("VmRSS"), time.perf_counter(), str(arguments.folder)
    if arguments.way == "part":
        loaded = load_part(name, LAYER + 1, device=arguments.device)
    else:
        loaded = load_model(name, device=arguments.device)
    steps = take_plain_steps if arguments.way == "plain" else take_steps
    changed = steps(loaded, arguments)
    trained, read = time.perf_counter(), bytes_read()
    if arguments.way == "part":
        save_changed(name, changed, arguments.folder / "unlearned")
    else:
        save_model(loaded.model, loaded.tokenizer, arguments.folder / "unlearned")
    saved, peak = time.perf_counter(), (resident("VmHWM") - before) * 2**20
    if loaded.model.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    figures = {"peak": peak, "read": read, "digest": digest(changed)}
    figures |= {"seconds": trained - began, "saving": saved - trained}
    sys.stdout.write(json.dumps(figures))


def bytes_read() -> int:
    """What this process had to fetch from disk so far (Linux)."""
    found = re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.M)
    assert found is not None
    return int(found[1])


def digest(tensors: Mapping[str, Tensor]) -> str:
    found = sha256()
    for tensor in tensors.values():
        found.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def measure(way: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One way in a process of its own."""
    for path in folder.glob("*.safetensors"):
        drop_from_cache(path)
    options = ["steps", "batch_size", "length", "trained", "device", "threads"]
    given = {name: getattr(arguments, name) for name in options} | {"folder": folder, "way": way}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "benchmarks.memory", *words]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    files = [path.stat() for path in (folder / "unlearned").iterdir()]
    written = sum(file.st_size for file in files if file.st_nlink == 1)  # the rest are links
    shutil.rmtree(folder / "unlearned")
    return {**json.loads(output.stdout), "written": written}


def drop_from_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def needed(config: PreTrainedConfig, arguments: argparse.Namespace) -> dict[str, float]:
    """Bytes that must be there at once, by what they are for."""
    decoder = Decoder(skeleton(config, torch.bfloat16))
    block = sum(parameter.numel() for parameter in decoder.blocks[0].parameters())
    trained = [p.numel() for p in trained_parameters(decoder, unlearning_for(arguments)).values()]
    hidden, inner, tokens = config.hidden_size, config.intermediate_size, graph_tokens(arguments)
    keys = config.num_key_value_heads * hidden // config.num_attention_heads
    # Kept for the backward pass. The first trained block: its MLP's last input. Those above: the
    # input of both norms in float32, queries and output of attention, keys, values, four times the
    # MLP's inside. At the end the states, targets and differences in float32.
    graph = 2 * inner + (len(trained) - 1) * (12 * hidden + 4 * keys + 8 * inner) + 12 * hidden
    return {
        f"blocks 0 to {LAYER} in bfloat16": HALF * block * (LAYER + 1),
        "embedding in bfloat16": HALF * config.vocab_size * hidden,
        "trained matrices: float32 masters, moments, gradients": STATE * sum(trained),
        "the same in bfloat16 for a pass": HALF * sum(trained),
        f"what is kept of {tokens} tokens for the backward pass": tokens * graph,
        "one matrix's gradient on its way": (HALF + 4) * trained[0],
    }


def graph_tokens(arguments: argparse.Namespace) -> int:
    return arguments.batch_size * arguments.length


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def print_needed(config: PreTrainedConfig, size: int, arguments: argparse.Namespace) -> None:
    table = Table("computed for this shape", "memory", "of the checkpoint")
    rows = needed(config, arguments)
    for name, value in {**rows, "together": sum(rows.values())}.items():
        table.add_row(name, gigabytes(value), f"{value / size:.3f}")
    Console(width=100).print(table)


def print_measured(figures: Mapping[str, Mapping[str, Any]], size: int) -> None:
    columns = ("peak", "of the checkpoint", "read", "load, train", "save", "written")
    table = Table("measured", *columns, title=f"RMU at layer {LAYER}, {gigabytes(size)} on disk")
    for way, each in figures.items():
        sizes = gigabytes(each["peak"]), f"{each['peak'] / size:.3f}", gigabytes(each["read"])
        seconds = f"{each['seconds']:.0f} s", f"{each['saving']:.1f} s"
        table.add_row(way, *sizes, *seconds, gigabytes(each["written"]))
    Console(width=100).print(table)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--layers", type=int, help="on disk; fewer than the shape has")
    parser.add_argument("--tied", action="store_true", help="the head is the embedding")
    parser.add_argument("--trained", type=int, default=3, help="blocks, up to layer 7")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="tokens of a text")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where there is room for the checkpoint")
    parser.add_argument("--compute-only", action="store_true", help="write and run nothing")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.way:
        print_figures(arguments)
        return
    config = deepcopy(SHAPES[arguments.shape])
    config.dtype, config.tie_word_embeddings = torch.bfloat16, arguments.tied
    config.num_hidden_layers = arguments.layers or config.num_hidden_layers
    size = HALF * skeleton(config, torch.bfloat16).num_parameters()
    if not arguments.compute_only:
        run(config, size, arguments)
    print_needed(config, size, arguments)


def run(config: PreTrainedConfig, size: int, arguments: argparse.Namespace) -> None:
    ways = WAYS if arguments.shape == "small" else ("part",)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        write_checkpoint(config, Path(name))
        figures = {way: measure(way, Path(name), arguments) for way in ways}
    assert figures["part"]["digest"] == figures.get("whole", figures["part"])["digest"]
    print_measured(figures, size)
    peak = figures["part"]["peak"]
    if arguments.shape == "small":  # any process takes something for itself: too much beside 1 GB
        assert peak <= PROMISED * figures["whole"]["peak"]
    elif arguments.device.startswith("cuda"):
        assert arguments.shape != "zephyr-7b" or peak <= PROMISED_ON_GPU
    elif graph_tokens(arguments) <= FEW_TOKENS and arguments.layers is None:
        assert peak <= PROMISED * size


if __name__ == "__main__":
    main()
