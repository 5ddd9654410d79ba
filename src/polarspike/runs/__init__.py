"""What a job leaves on disk: its directory, its curves for other programs (``trackers``), tables of jobs (``ledger``)."""

from polarspike.runs.directory import RunDirectory, differences, read_config, read_json, read_records

__all__ = ["RunDirectory", "differences", "read_config", "read_json", "read_records"]
