"""Networks and images that somebody already has: by name, from weights, from a Python factory, from an exported program.

``models`` reads a reference and asks ``packages`` (torchvision, timm), ``factories`` (own code) or ``exported`` (programs);
``weights`` fills a model from a file, ``transfer`` says what may differ in one that learns on, ``images`` and
``preprocessing`` give it what it expects.

Nothing is ever downloaded, and no file but a factory that the user names is executed.
"""

from polarspike.sources.exported import load_exported
from polarspike.sources.images import images
from polarspike.sources.models import WEIGHT_FILES, build, preprocessing
from polarspike.sources.preprocessing import Preprocessing
from polarspike.sources.transfer import take_over
from polarspike.sources.weights import Say, Weights, fit_weights, read_weights, sha256, silent

__all__ = [
    "WEIGHT_FILES",
    "Preprocessing",
    "Say",
    "Weights",
    "build",
    "fit_weights",
    "images",
    "load_exported",
    "preprocessing",
    "read_weights",
    "sha256",
    "silent",
    "take_over",
]
