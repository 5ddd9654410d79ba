"""Files of a spiking network that run without this library; each is read back and compared before it is called written.

``writing`` goes through it: a format of ``formats`` makes the network ready, writes it and reads it back, and the ``report``
says how far its answers are. Float files: ``first_timestep`` as a plain graph, which ``programs``, ``onnx_float`` and
``nir_graph`` write (``nir_modules`` runs what nirtorch reads). Whole numbers: ``marking`` names the sites of an ATen
program, ``lowering`` goes through it by its ``rules`` and by questions of ``aten``, ``instructions`` are what comes out,
and ``integer`` is the whole. On the way, ``signals`` says what a value is, ``channels`` whose step is whose,
``constants`` and ``observed`` what is known of values. ``emission`` writes the instructions for ``onnx_int8``, with
``onnx_writer``, and ``onnx_sums`` where sums are wide. ``runtime`` opens what was written, ``description`` is what a
reader of a file can know.
"""

from polarspike.exporters.report import ExportReport
from polarspike.exporters.writing import FORMATS, export

__all__ = ["FORMATS", "ExportReport", "export"]
