"""What knows nothing of spikes: how inputs are read, modules handled, numbers checked, files written, tables printed.

``inputs`` reads tensors, tuples and dicts alike, ``frames`` those over several timesteps, and ``signatures`` know which a
network takes; ``modules`` are small tools for any module, ``precision`` and ``samplers`` for products and for loaders.
``files`` appear whole or not at all, ``seals`` notice what was changed in them, and ``locks`` let one process in.
``checks`` are of numbers, ``tables`` are text.
"""
