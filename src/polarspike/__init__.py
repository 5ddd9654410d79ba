"""Turn PyTorch networks into spiking networks that are exact at their first timestep.

quantize -> calibrate -> (fit) -> convert -> verify -> evaluate -> save or export

Every name is loaded when it is first asked for: what runs an exported file needs no torch, and imports none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polarspike import data, models
    from polarspike.allocation import Allocation, allocate
    from polarspike.analysis.diagnosis import Diagnosis, diagnose
    from polarspike.calibration import CalibratedSite, calibrate
    from polarspike.checkpoint import load, save
    from polarspike.conversion import convert
    from polarspike.correction import correct_bias
    from polarspike.counting import OperationCounts, count_operations
    from polarspike.energy import CostTable, EnergyEstimate, estimate_energy
    from polarspike.equalization import equalize
    from polarspike.equivalence import verify
    from polarspike.errors import PolarspikeError, PolarspikeWarning
    from polarspike.evaluation import Evaluation, evaluate
    from polarspike.exporters import ExportReport, export
    from polarspike.information import best_step, entropy
    from polarspike.plan import Plan
    from polarspike.proofs.proof import Proof
    from polarspike.pruning import prune
    from polarspike.quantization import inspect, quantize
    from polarspike.quantized import QuantizedNetwork, fold_batch_norm, refine
    from polarspike.reconstruction import reconstruct
    from polarspike.snapping import snap_gains, snap_steps
    from polarspike.specs import ConvertSpec, QuantSpec
    from polarspike.spiking import Latency, SpikingNetwork, SpikingState
    from polarspike.spiking.through_time import TemporalNetwork, unroll
    from polarspike.training import History, fit
    from polarspike.training.distillation import Distillation, distill
    from polarspike.training_spec import TrainSpec
    from polarspike.weights import fix_weights, quantize_weights

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "CalibratedSite",
    "ConvertSpec",
    "CostTable",
    "Diagnosis",
    "Distillation",
    "EnergyEstimate",
    "Evaluation",
    "ExportReport",
    "History",
    "Latency",
    "OperationCounts",
    "Plan",
    "PolarspikeError",
    "PolarspikeWarning",
    "Proof",
    "QuantSpec",
    "QuantizedNetwork",
    "SpikingNetwork",
    "SpikingState",
    "TemporalNetwork",
    "TrainSpec",
    "__version__",
    "allocate",
    "best_step",
    "calibrate",
    "convert",
    "correct_bias",
    "count_operations",
    "data",
    "diagnose",
    "distill",
    "entropy",
    "equalize",
    "estimate_energy",
    "evaluate",
    "export",
    "fit",
    "fix_weights",
    "fold_batch_norm",
    "inspect",
    "load",
    "models",
    "prune",
    "quantize",
    "quantize_weights",
    "reconstruct",
    "refine",
    "save",
    "snap_gains",
    "snap_steps",
    "unroll",
    "verify",
]

#: Where each public name is defined; data and models are modules themselves.
_HOMES = {
    "allocation": (
        "Allocation",
        "allocate",
    ),
    "calibration": (
        "CalibratedSite",
        "calibrate",
    ),
    "checkpoint": (
        "load",
        "save",
    ),
    "conversion": ("convert",),
    "correction": ("correct_bias",),
    "counting": (
        "OperationCounts",
        "count_operations",
    ),
    "analysis.diagnosis": (
        "Diagnosis",
        "diagnose",
    ),
    "training.distillation": (
        "Distillation",
        "distill",
    ),
    "energy": (
        "CostTable",
        "EnergyEstimate",
        "estimate_energy",
    ),
    "equalization": ("equalize",),
    "equivalence": ("verify",),
    "errors": (
        "PolarspikeError",
        "PolarspikeWarning",
    ),
    "evaluation": (
        "Evaluation",
        "evaluate",
    ),
    "exporters": (
        "ExportReport",
        "export",
    ),
    "information": (
        "best_step",
        "entropy",
    ),
    "plan": ("Plan",),
    "proofs.proof": ("Proof",),
    "pruning": ("prune",),
    "quantization": (
        "inspect",
        "quantize",
    ),
    "quantized": (
        "QuantizedNetwork",
        "fold_batch_norm",
        "refine",
    ),
    "reconstruction": ("reconstruct",),
    "snapping": ("snap_gains", "snap_steps"),
    "specs": (
        "ConvertSpec",
        "QuantSpec",
    ),
    "spiking": (
        "Latency",
        "SpikingNetwork",
        "SpikingState",
    ),
    "spiking.through_time": (
        "TemporalNetwork",
        "unroll",
    ),
    "weights": ("fix_weights", "quantize_weights"),
    "training": (
        "History",
        "fit",
    ),
    "training_spec": ("TrainSpec",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name in ("data", "models"):
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
