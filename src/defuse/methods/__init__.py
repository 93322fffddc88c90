"""Unlearning methods, a frozen dataclass and a file each, and retain losses."""

from collections.abc import Mapping

from defuse.methods.adaptive_rmu import AdaptiveRMU
from defuse.methods.base import Method, PreferenceMethod, RepresentationMethod, Steering
from defuse.methods.dpo import DPO
from defuse.methods.npo import NPO
from defuse.methods.retain import HiddenMSE, LogitKL, LogitMSE, LogitRetain, Retain
from defuse.methods.rmu import RMU
from defuse.methods.rsv import RSV
from defuse.methods.simnpo import SimNPO

METHODS: Mapping[str, type[RMU | AdaptiveRMU | RSV | NPO | DPO | SimNPO]] = {
    method.name: method for method in (RMU, AdaptiveRMU, RSV, NPO, DPO, SimNPO)
}
RETAIN_LOSSES: Mapping[str, type[HiddenMSE | LogitKL | LogitMSE]] = {
    retain.name: retain for retain in (HiddenMSE, LogitKL, LogitMSE)
}

__all__ = [
    "DPO",
    "METHODS",
    "NPO",
    "RETAIN_LOSSES",
    "RMU",
    "RSV",
    "AdaptiveRMU",
    "HiddenMSE",
    "LogitKL",
    "LogitMSE",
    "LogitRetain",
    "Method",
    "PreferenceMethod",
    "RepresentationMethod",
    "Retain",
    "SimNPO",
    "Steering",
]
