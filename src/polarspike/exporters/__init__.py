"""Files of a spiking network that run without this library; each is read back and compared before it is called written."""

from polarspike.exporters.report import ExportReport
from polarspike.exporters.writing import FORMATS, export

__all__ = ["FORMATS", "ExportReport", "export"]
