"""Turn PyTorch networks into spiking networks that are exact at their first timestep.

quantize -> calibrate -> (fit) -> convert -> verify -> evaluate -> save
"""

from polarspike import data, models
from polarspike.calibration import CalibratedSite, calibrate
from polarspike.checkpoint import load, save
from polarspike.conversion import convert
from polarspike.counting import OperationCounts, count_operations
from polarspike.energy import CostTable, EnergyEstimate, estimate_energy
from polarspike.equivalence import verify
from polarspike.errors import PolarspikeError, PolarspikeWarning
from polarspike.evaluation import Evaluation, evaluate
from polarspike.information import best_step, entropy
from polarspike.proof import Proof
from polarspike.quantization import Plan, inspect, quantize
from polarspike.quantized import QuantizedNetwork, fold_batch_norm, refine
from polarspike.specs import ConvertSpec, QuantSpec, TrainSpec
from polarspike.spiking import SpikingNetwork, SpikingState
from polarspike.training import History, fit

__version__ = "0.1.0"

__all__ = [
    "CalibratedSite",
    "ConvertSpec",
    "CostTable",
    "EnergyEstimate",
    "Evaluation",
    "History",
    "OperationCounts",
    "Plan",
    "PolarspikeError",
    "PolarspikeWarning",
    "Proof",
    "QuantSpec",
    "QuantizedNetwork",
    "SpikingNetwork",
    "SpikingState",
    "TrainSpec",
    "__version__",
    "best_step",
    "calibrate",
    "convert",
    "count_operations",
    "data",
    "entropy",
    "estimate_energy",
    "evaluate",
    "fit",
    "fold_batch_norm",
    "inspect",
    "load",
    "models",
    "quantize",
    "refine",
    "save",
    "verify",
]
