"""Checksums of models and tokenizers: equal checksums mean equal results."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

NOT_OF_THE_MODEL = ("_name_or_path", "name_or_path", "transformers_version")
TOKENIZER_OPTIONS = ("add_bos_token", "add_eos_token", "model_max_length", "truncation_side")


def model_identity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """All that a model's results depend on beside what it is asked, by name."""
    return {
        "weights": weights_checksum(model),
        "configuration": config_checksum(model),
        "tokenizer": tokenizer_checksum(tokenizer),
        "precision": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
    }


def weights_checksum(model: PreTrainedModel) -> str:
    """A hash of every value of the model's parameters and buffers.

    `defuse.utils.provenance.fingerprint` is quicker, but looks at a sample of the values.
    """
    tensors = [*model.named_parameters(), *model.named_buffers()]
    present = {name: tensor for name, tensor in tensors if not tensor.is_meta}
    with ThreadPoolExecutor() as pool:  # hashing and copying release the interpreter's lock
        digests = dict(zip(present, pool.map(_tensor_digest, present.values()), strict=True))
    return digest(sorted(digests.items()))


def config_checksum(model: PreTrainedModel) -> str:
    """A hash of the model's configuration, wherever it was loaded from."""
    settings = model.config.to_dict()
    kept = {key: value for key, value in settings.items() if key not in NOT_OF_THE_MODEL}
    return digest(json.dumps(kept, sort_keys=True, default=str))


def tokenizer_checksum(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of everything that decides which ids a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: dict[str, object] = {"vocabulary": tokenizer.get_vocab()}
    else:
        rules = json.loads(backend.to_str())
    for name in ("truncation", "padding"):  # every call of the tokenizer sets them
        rules.pop(name, None)
    options = [getattr(tokenizer, name, None) for name in TOKENIZER_OPTIONS]
    special = tokenizer.special_tokens_map
    return digest(json.dumps([rules, special, options], sort_keys=True, default=str))


def _tensor_digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    hashed = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    hashed.update(values.data)
    return hashed.hexdigest()


def digest(value: object) -> str:
    """A hash of anything whose `repr` says all about it."""
    return hashlib.sha256(repr(value).encode()).hexdigest()
