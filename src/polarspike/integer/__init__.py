"""Spiking networks in whole numbers, without torch: what they are, what they mean, and their files.

``network`` is what they are, ``execution`` what they mean (over ``windows``), ``storage`` their file; ``rounding`` finds
whole numbers for weights, and ``lattice`` thresholds that no sum can meet.
"""

from polarspike.integer.execution import run, trace
from polarspike.integer.network import Instruction, IntegerNetwork
from polarspike.integer.storage import load, save

__all__ = ["Instruction", "IntegerNetwork", "load", "run", "save", "trace"]
