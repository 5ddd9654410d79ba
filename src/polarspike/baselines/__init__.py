"""Rival methods, measured on the same network, images and counts as ours, at their true latency."""

from polarspike.baselines.methods import METHODS, Method
from polarspike.baselines.rival import Rival, RivalSpec, prepare
from polarspike.sequences import SequenceNetwork

__all__ = ["METHODS", "Method", "Rival", "RivalSpec", "SequenceNetwork", "prepare"]
