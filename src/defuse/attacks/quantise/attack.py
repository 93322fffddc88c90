"""Quantisation: does rounding the weights bring the knowledge back (2410.16454)?

Weights only, to the nearest of 2^bits - 1 levels symmetric about 0, with a scale for each group of
inputs. Small changes of the weights, and with them the unlearning, may be rounded away. The
rounding is simulated exactly: the weights are the dequantised ones, in the model's own dtype, so
that it runs on any device. torchao or bitsandbytes can quantise instead if they are installed.
"""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from defuse.attacks.data import AttackData, ask_all
from defuse.attacks.findings import Findings
from defuse.attacks.quantise.backends import BACKENDS, quiet_backends
from defuse.attacks.quantise.config import Quantisation
from defuse.attacks.results import Result
from defuse.attacks.variants import PIECES, Made, Variant, ask_variants
from defuse.models.decoder import Decoder
from defuse.models.freeze import sharing_copy
from defuse.models.load import require_plain_weights
from defuse.models.lora import LINEAR
from defuse.utils.errors import UsageError, require
from defuse.utils.precision import upcast
from defuse.utils.progress import SILENT, Progress

NAME = "quantise"


def check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,  # noqa: ARG001 (all attacks have the same signature)
    data: AttackData,  # noqa: ARG001
    config: Quantisation,
) -> None:
    """Raise UsageError for what the attack refuses, without reading weights.

    That is a backend that is not installed or cannot take the model's matrices, and a model that is
    quantised already.
    """
    backend = BACKENDS[config.backend]
    backend.check_installed(config.backend)
    require_plain_weights(model, "model", "give it as it was before")
    found = [
        (f"{index}.{name}", linear)
        for index, block in enumerate(Decoder(model).blocks)
        for name, linear in block.named_modules()
        if isinstance(linear, LINEAR)
    ]
    if not found:
        raise UsageError("model: its blocks have no linear modules whose weights to quantise")
    for name, linear in found:
        inputs, size = as_linear(linear).in_features, config.group_size
        cut = backend.whole_groups and size > 0 and inputs % size > 0
        remedy = f"does not divide the {inputs} inputs of block {name}, as torchao needs: use 0"
        require(not cut, "quantise.group_size", size, remedy)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: AttackData,
    config: Quantisation | None = None,
    *,
    findings: Findings | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Ask `model` with its linear weights as they are, and quantised to each width.

    Raises UsageError as `check` does.
    """
    config, findings = config or Quantisation(), findings or Findings()
    check(model, tokenizer, data, config)
    variants = [
        Variant(f"{bits} bits", partial(quantised, model, bits, config)) for bits in config.bits
    ]
    findings.report_to(progress, NAME, len(data.sets) + PIECES * len(variants))
    with findings.counting(model), quiet_backends():
        before = ask_all(model, tokenizer, data, findings, "before")
        conditions, changed = ask_variants(variants, tokenizer, data, before, findings, config.seed)
    return Result(NAME, asdict(config), conditions, findings.cost, changed)


def quantised(model: PreTrainedModel, bits: int, config: Quantisation) -> Made:
    """Return a copy with quantised linear weights in all blocks, and their ‖new − w‖ / ‖w‖.

    All other tensors are shared with `model`; embedding and head stay as they are.
    """
    copy = sharing_copy(model, [])
    quantise = BACKENDS[config.backend].quantise
    squares, errors = 0.0, 0.0
    for parent, name, linear in linears(copy):
        plain = as_linear(linear)
        old = plain.weight.detach()
        module, new = quantise(plain, bits, config.group_size)
        setattr(parent, name, module)
        squares += float(upcast(old).square().sum())
        errors += float((upcast(new) - upcast(old)).square().sum())
    return copy, {"relative_error": (errors / squares) ** 0.5}


def linears(model: PreTrainedModel) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield the linear modules of all blocks, each after its parent and its name there."""
    for block in Decoder(model).blocks:
        for parent in list(block.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, LINEAR):
                    yield parent, name, child


def as_linear(module: nn.Module) -> nn.Linear:
    """Return a linear module with the same tensors; GPT-2's (inputs, outputs) is transposed."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    weight = weight.detach() if isinstance(module, nn.Linear) else weight.detach().T
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = module.bias  # type: ignore[assignment]
    return linear
