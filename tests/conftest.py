"""Fixtures: a tiny tokenizer and a tiny random Llama, made in code. No test uses the network."""

import os
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
# Read when numpy and PyTorch are imported, and inherited by the processes that tests start. With
# matrices this small, a second thread of BLAS only costs processor time: up to ten times as much.
os.environ["OMP_NUM_THREADS"] = "1"

from hashlib import sha256
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

# Shapes in the signatures of pure tensor code are checked here, and nowhere else.
install_import_hook("defuse.losses", "beartype.beartype")
torch.set_num_threads(1)
CORPUS = (
    "The following are multiple choice questions (with answers) about college biology.",
    "Question: What does the cat see? Answer: The cat sees a small bird in the tree.",
    "I read about the moon today. A. B. C. D. Answer:",
)


def build_tokenizer(*, vocab_size: int = 320) -> PreTrainedTokenizerBase:
    """Byte-level BPE, which encodes and decodes any text, with a BOS token in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def build_llama(*, vocab_size: int = 320, layers: int = 4, seed: int = 0) -> PreTrainedModel:
    """A random Llama of 32 hidden units."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return build_tokenizer()


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    """Fresh for every test, since a test may train it."""
    return build_llama()


@pytest.fixture(scope="session")
def tiny_model_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerBase
) -> Path:
    """A checkpoint of the tiny Llama on disk, shared by all tests: read it, never write there."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    build_llama().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder in which datasets are found by their id; they are cached nowhere else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / ".cache")
    return tmp_path


@pytest.fixture
def sharded_model_folder(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    """The tiny Llama in bfloat16 with its tensors in several files, which a test may change."""
    folder = tmp_path / "sharded-llama"
    build_llama().bfloat16().save_pretrained(folder, max_shard_size="30KB")
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub_model(tmp_path: Path, sharded_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of the sharded model in a cache of the hub, where files are links to content."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    home, commit = tmp_path / "hub" / "models--nobody--sharded", "0123456789" * 4
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (home / folder).mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    for path in sharded_model_folder.iterdir():
        blob = home / "blobs" / sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (home / "snapshots" / commit / path.name).symlink_to(blob)
    return "nobody/sharded"


@pytest.fixture
def tiny_adapter_folder(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """A random LoRA adapter of the tiny model, which a test may change."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(1)
    base = LlamaForCausalLM.from_pretrained(tiny_model_folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        get_peft_model(base, config).save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"
