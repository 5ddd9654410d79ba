"""Spiking networks in whole numbers, without torch: what they are, what they mean, and their files."""

from polarspike.integer.execution import run, trace
from polarspike.integer.network import Instruction, IntegerNetwork
from polarspike.integer.storage import load, save

__all__ = ["Instruction", "IntegerNetwork", "load", "run", "save", "trace"]
