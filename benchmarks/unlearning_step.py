"""Defuse's unlearning step beside the plain one: equal results first, then time, memory, work.

    python -m benchmarks.unlearning_step                    # all six methods
    python -m benchmarks.unlearning_step --method rmu --repeats 9
    python -m benchmarks.unlearning_step --method simnpo --profile     # where the time goes
    python -m benchmarks.unlearning_step --shape zephyr-7b --dtype bfloat16 --dry     # nothing run

The model is a random Llama of a shape in `benchmarks.shapes`; `down_proj` of blocks 5 to 7 is
trained, everything else frozen in both. Both sides run AdamW, on float32 masters. Times alternate
within one process; on one thread of the CPU they are processor times, which other work does not
touch. `first` is Defuse's first step by the clock on the wall, `again` a step whose texts the
frozen blocks have seen before. Each peak of memory comes from a process of its own. The work of
either side is counted by `benchmarks.cost`.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from benchmarks.cost import kept_bytes, step_flops
from benchmarks.machine import Memory, measured_peak, seconds
from benchmarks.shapes import SHAPES
from benchmarks.sides import Setting, Side, plain_side, shared_side, unlearning_for
from defuse.methods import METHODS
from defuse.models.decoder import Decoder

AGAIN = 2  # the batch that comes again
# Relative to what is compared. bfloat16 rounds by 2⁻⁹, and a gradient comes through many roundings:
# either side's is 0.5 to 1.5 % from float32's (tests/test_half_precision.py).
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-5}
MATRIX_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
TIMES = (
    "first",
    "plain",
    "Defuse",
    "faster",
    "again",
    "faster",
    "plain MiB",
    "Defuse MiB",
    "share",
)
WORK = ("plain TFLOP", "Defuse TFLOP", "plain /s", "Defuse /s", "of peak", "of peak")
PROFILE = ("plain", "products", "Defuse", "products")
DRY = ("plain TFLOP", "Defuse TFLOP", "less", "kept for backward", "with recompute")


def assert_equal(setting: Setting, plain: Side, shared: Side) -> float:
    """Losses and gradients within `TOLERANCE`, at a second step, away from the start.

    Gives the wall time of Defuse's first step, compilation included.
    """
    tolerance, first = TOLERANCE[setting.dtype], setting.batch(0)
    began = time.perf_counter()
    shared.step(first, 0)
    took = time.perf_counter() - began
    plain.step(first, 0)
    found, expected = (side.step(setting.batch(1), 1) for side in (shared, plain))
    total = sum(expected)
    for one, other in zip(found, expected, strict=True):
        # So near the start a retain loss is a difference of almost equal states.
        assert (one - other).abs() <= tolerance * (other.abs() + 0.1 * total), (one, other)
    for one, other in zip(shared.gradients(), plain.gradients(), strict=True):
        assert (one - other).norm() <= tolerance * other.norm()
    return took


def ratio(
    setting: Setting, plain: Side, shared: Side, repeats: int, *, again: bool
) -> tuple[float, float, float]:
    """Median seconds of each, alternating, and the median of the pairs' ratios."""
    pairs = []
    for repeat in range(repeats + 1):
        turn = AGAIN if again else AGAIN + repeat
        batch = setting.batch(turn)
        steps = [partial(side.step, batch, turn) for side in (plain, shared)]
        pairs.append([seconds(step, setting.device) for step in steps])
    pairs = pairs[1:]  # the first fills caches
    return (
        statistics.median(one for one, _ in pairs),
        statistics.median(other for _, other in pairs),
        statistics.median(one / other for one, other in pairs),
    )


def memory_of_child(setting: Setting, side: str, arguments: argparse.Namespace) -> float:
    options = ["--method", setting.unlearning.method.name, "--memory-of", side]  # type: ignore[union-attr]
    for name in ("shape", "device", "dtype", "threads", "noise-std"):
        options += [f"--{name}", str(getattr(arguments, name.replace("-", "_")))]
    options += ["--recompute"] if arguments.recompute else []
    command = [sys.executable, "-m", "benchmarks.unlearning_step", *options]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return float(output.stdout)


def print_memory(setting: Setting, arguments: argparse.Namespace) -> None:
    """In the child: MiB that three steps take at their peak."""
    memory = Memory(setting.device)
    model, unlearning = setting.model(), setting.unlearning
    if arguments.memory_of == "plain":
        side = plain_side(model, unlearning)
    else:
        side = shared_side(model, unlearning, recompute=arguments.recompute)
    for turn in range(3):
        side.step(setting.batch(turn), turn)
    sys.stdout.write(f"{memory.peak()}\n")


def compare(setting: Setting, arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """A row of times and memory, and a row of work."""
    memory = [memory_of_child(setting, side, arguments) for side in ("plain", "shared")]
    model, unlearning = setting.model(), setting.unlearning
    own, option = _compiled(model) if arguments.compile else model, arguments.recompute
    plain, single = plain_side(model, unlearning), shared_side(own, unlearning, recompute=option)
    kept = shared_side(own, unlearning, setting.batch(AGAIN), recompute=option)
    first = assert_equal(setting, plain, single)
    once = ratio(setting, plain, single, arguments.repeats, again=False)
    again = ratio(setting, plain, kept, arguments.repeats, again=True)
    times = [
        f"{first:.0f} s",
        f"{once[0]:.2f} s",
        f"{once[1]:.2f} s",
        f"{once[2]:.2f}×",
        f"{again[1]:.2f} s",
        f"{again[2]:.2f}×",
        f"{memory[0]:.0f}",
        f"{memory[1]:.0f}",
        f"{memory[1] / memory[0]:.2f}",
    ]
    return times, work(setting, once[:2], arguments.peak_tflops)


def work(setting: Setting, times: Sequence[float], peak: float) -> list[str]:
    """Of either side: TFLOP, TFLOP a second and that speed's share of the peak."""
    needed = [tflop(setting, plain=plain) for plain in (True, False)]
    speeds = [each / time for each, time in zip(needed, times, strict=True)]
    shares = [speed / peak for speed in speeds]
    return [*(f"{n:.3g}" for n in needed + speeds), *(f"{share:.0%}" for share in shares)]


def dry(setting: Setting) -> list[str]:
    """What a step must compute and keep, by arithmetic."""
    plain, ours = (tflop(setting, plain=plain) for plain in (True, False))
    kept = [
        kept_bytes(setting.shape, setting.unlearning, setting.dtype, recompute=recompute) / 2**30
        for recompute in (False, True)
    ]
    return [f"{plain:.3g}", f"{ours:.3g}", f"{plain / ours:.2f}×", *(f"{k:.2f} GiB" for k in kept)]


def tflop(setting: Setting, *, plain: bool) -> float:
    return step_flops(setting.shape, setting.unlearning, plain=plain) / 1e12


def profile(setting: Setting) -> list[str]:
    """Processor seconds of one step on each side: in all, and in matrix products alone."""
    model, cells = setting.model(), []
    for side in (plain_side(model, setting.unlearning), shared_side(model, setting.unlearning)):
        side.step(setting.batch(0), 0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            side.step(setting.batch(1), 1)
        times = {event.key: event.self_cpu_time_total / 1e6 for event in seen.key_averages()}
        products = sum(times.get(name, 0.0) for name in MATRIX_PRODUCTS)
        cells += [f"{sum(times.values()):.2f} s", f"{products:.2f} s"]
    return cells


def _compiled(model: PreTrainedModel) -> PreTrainedModel:
    model = deepcopy(model)
    for block in Decoder(model).blocks:
        block.compile()
    return model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--method", action="append", choices=list(METHODS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", choices=list(SHAPES), default="narrow")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--noise-std", type=float, default=0.0, help="0: without RNA")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak-tflops", type=float, help="the device's; else measured")
    parser.add_argument("--recompute", action="store_true", help="in Defuse's backward pass")
    parser.add_argument("--compile", action="store_true", help="the blocks that Defuse runs")
    parser.add_argument("--profile", action="store_true", help="where a step's time goes")
    parser.add_argument("--dry", action="store_true", help="count a step's work, run nothing")
    parser.add_argument("--memory-of", choices=["plain", "shared"], help=argparse.SUPPRESS)
    return parser.parse_args()


def settings(arguments: argparse.Namespace) -> list[Setting]:
    shape, dtype = SHAPES[arguments.shape], getattr(torch, arguments.dtype)
    methods = arguments.method or list(METHODS)
    unlearnings = [unlearning_for(method, arguments.noise_std) for method in methods]
    return [Setting(shape, unlearning, arguments.device, dtype) for unlearning in unlearnings]


def show(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    table = Table(title=f"Unlearning step, plain against Defuse: {title}")
    for column in ("method + retain", *columns):
        table.add_column(column, no_wrap=True)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    Console(width=130).print(table)


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    chosen = settings(arguments)
    where = f"{arguments.shape}, {arguments.dtype}, {arguments.device}"
    if arguments.memory_of:
        print_memory(chosen[0], arguments)
    elif arguments.dry:
        show(f"{where}, by arithmetic", DRY, {each.name: dry(each) for each in chosen})
    elif arguments.profile:
        rows = {each.name: profile(each) for each in chosen}
        show(f"{where}, one step's processor time", PROFILE, rows)
    else:
        peak = arguments.peak_tflops or measured_peak(arguments.device, chosen[0].dtype)
        arguments.peak_tflops = peak
        both = {each.name: compare(each, arguments) for each in chosen}
        show(f"{where}, equal losses and gradients", TIMES, {k: v[0] for k, v in both.items()})
        show(f"{where}, peak {peak:.3g} TFLOP/s", WORK, {k: v[1] for k, v in both.items()})


if __name__ == "__main__":
    main()
