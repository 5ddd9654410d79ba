"""Event-camera data sets: recordings, their file formats, and the frames that a network sees.

``formats`` reads files into ``streams``, ``frames`` bins them, ``cache`` keeps the bins, ``sequences`` gives them as
timesteps. ``published`` are recorded data sets, ``simulated`` those of the camera in ``simulation``; ``dataset`` names
all of them.

>>> from polarspike.data import events
>>> events.names()
['cifar10-dvs', 'dvs128-gesture', 'events-fashion-mnist', 'n-caltech101', 'n-mnist', 'saccade-order']
"""

from polarspike.data.events import published, simulated
from polarspike.data.events.dataset import EventDataset, find_source, load_events, names
from polarspike.data.events.formats import read_aedat, read_bin, read_npy, write_bin
from polarspike.data.events.frames import FrameSpec, to_frames
from polarspike.data.events.sequences import SequenceDataset
from polarspike.data.events.simulation import CameraSpec, simulate
from polarspike.data.events.streams import EventStream

__all__ = [
    "CameraSpec",
    "EventDataset",
    "EventStream",
    "FrameSpec",
    "SequenceDataset",
    "find_source",
    "load_events",
    "names",
    "published",
    "read_aedat",
    "read_bin",
    "read_npy",
    "simulate",
    "simulated",
    "to_frames",
    "write_bin",
]
