"""Turn PyTorch networks into spiking networks that are exact at their first timestep.

quantize -> calibrate -> (fit) -> convert -> verify -> evaluate -> save or export
"""

from polarspike import data, models
from polarspike.allocation import Allocation, allocate
from polarspike.calibration import CalibratedSite, calibrate
from polarspike.checkpoint import load, save
from polarspike.conversion import convert
from polarspike.correction import correct_bias
from polarspike.counting import OperationCounts, count_operations
from polarspike.diagnosis import Diagnosis, diagnose
from polarspike.distillation import Distillation, distill
from polarspike.energy import CostTable, EnergyEstimate, estimate_energy
from polarspike.equalization import equalize
from polarspike.equivalence import verify
from polarspike.errors import PolarspikeError, PolarspikeWarning
from polarspike.evaluation import Evaluation, evaluate
from polarspike.exporters import ExportReport, export
from polarspike.information import best_step, entropy
from polarspike.plan import Plan
from polarspike.proof import Proof
from polarspike.pruning import prune
from polarspike.quantization import inspect, quantize
from polarspike.quantized import QuantizedNetwork, fold_batch_norm, refine
from polarspike.reconstruction import reconstruct
from polarspike.specs import ConvertSpec, QuantSpec, TrainSpec
from polarspike.spiking import Latency, SpikingNetwork, SpikingState
from polarspike.through_time import TemporalNetwork, unroll
from polarspike.training import History, fit

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
    "fold_batch_norm",
    "inspect",
    "load",
    "models",
    "prune",
    "quantize",
    "reconstruct",
    "refine",
    "save",
    "unroll",
    "verify",
]
