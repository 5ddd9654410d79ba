"""What a job leaves on disk: its directory, its curves for other programs (``trackers``), tables of jobs (``ledger``).

Of a directory: what it says (``reading``), whose it is (``ownership``), what is done in it (``directory``).
"""

from polarspike.runs.directory import RunDirectory
from polarspike.runs.ownership import require_free
from polarspike.runs.reading import differences, read_config, read_json, read_records

__all__ = ["RunDirectory", "differences", "read_config", "read_json", "read_records", "require_free"]
