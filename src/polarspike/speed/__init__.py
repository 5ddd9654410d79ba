"""How fast a spiking network is beside the network it came from: runtimes in one process, in turn, round by round.

What is gained at T = 1 is integer arithmetic, so plain 8-bit quantization of the same float network runs beside it.
"""

from polarspike.speed.agreement import Agreement, agreement
from polarspike.speed.files import Files, write_files
from polarspike.speed.footprint import Footprint, cold_start, footprint
from polarspike.speed.machine import machine
from polarspike.speed.measurement import Course, Heat, measure
from polarspike.speed.peers import add_spikingjelly
from polarspike.speed.race import Ratio, Times, race
from polarspike.speed.runtimes import Runtime, Runtimes, runtimes_of
from polarspike.speed.subject import Subject, pictures, random_subject, subject_of
from polarspike.speed.table import footprint_table, speed_table

__all__ = [
    "Agreement",
    "Course",
    "Files",
    "Footprint",
    "Heat",
    "Ratio",
    "Runtime",
    "Runtimes",
    "Subject",
    "Times",
    "add_spikingjelly",
    "agreement",
    "cold_start",
    "footprint",
    "footprint_table",
    "machine",
    "measure",
    "pictures",
    "race",
    "random_subject",
    "runtimes_of",
    "speed_table",
    "subject_of",
    "write_files",
]
