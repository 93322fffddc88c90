"""Variables of the environment that would change a training without a trace in its record."""

import os

import torch

from defuse.utils.errors import UsageError

PRECISION = "ACCELERATE_MIXED_PRECISION"
# What `accelerate launch` sets for other ways to spread a model over processes or compile it.
OTHER_ENGINES = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_MEGATRON_LM",
)
COMPILER = "ACCELERATE_DYNAMO_BACKEND"


def check_environment(dtype: torch.dtype) -> None:
    """Raise UsageError for what `accelerate launch` sets against the settings of the run."""
    own = "bf16" if dtype == torch.bfloat16 else "no"
    precision = os.environ.get(PRECISION, own).lower()
    if precision not in ("no", own):
        name = str(dtype).removeprefix("torch.")
        raise UsageError(
            f"{PRECISION}: {precision!r} would train a {name} model in another precision; use "
            "--dtype bfloat16 with bf16, or accelerate launch --mixed_precision no"
        )
    for variable in OTHER_ENGINES:
        if os.environ.get(variable, "false").lower() in ("true", "1", "yes"):
            raise UsageError(
                f"{variable}: {os.environ[variable]!r} is not supported; start with accelerate "
                "launch --multi_gpu, or leave it out"
            )
    if os.environ.get(COMPILER, "no").lower() != "no":
        raise UsageError(
            f"{COMPILER}: {os.environ[COMPILER]!r} is not supported; start with accelerate launch "
            "--dynamo_backend no"
        )
