"""Run directories: everything that one job leaves on disk, written so that a kill at any moment loses nothing.

A run directory holds ``config.json`` (what was asked, by which versions), ``log.jsonl`` (one record per line),
``training.safetensors`` (the last checkpoint) and any other JSON file; a run of several stages holds one such directory
for each. Every file but the log is written beside its place and then moved there in one step, so that a reader sees the
old file or the new one. The log only grows; a last line that a kill has torn is dropped when the run is resumed.

One process writes a run, and a second one is refused as long as the first lives (``ownership``). Who only reads asks nobody.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from polarspike.common.files import PARTIAL, replacing
from polarspike.common.locks import Hold
from polarspike.errors import CheckpointError, InputError, RunError, SpecError, WriteError
from polarspike.parallel import distributed
from polarspike.runs.ownership import LOCK, own
from polarspike.runs.reading import FORMAT, VERSION, differences, read_config, read_json, read_records
from polarspike.runs.trackers import TensorBoard
from polarspike.specs import Spec

_PARTIALS = f".*{PARTIAL}"
_STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class RunDirectory:
    """One directory for one job: created and checked at once, before any work.

    It is this process's own until all its objects of this run are closed or gone; several may follow each other.

    Args:
        path: where; missing parents are made.
        resume: continue the run that is there; an empty directory is a run that was killed before it began.
        tensorboard: show the records in TensorBoard, too; its files are in the folder ``tensorboard``.

    Raises:
        MissingExtraError: TensorBoard is asked for and not installed.
        RunError: the directory cannot be written, holds something that is not a run, holds a run and ``resume`` is
            false, or ``resume`` is true and there is nothing; or another process has it, or the run that it is a stage of.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume: bool = False, tensorboard: bool = False) -> None:
        self.path = Path(path)
        self.resume = resume
        # In every process, so that all refuse together where it is not installed; the main one alone writes.
        self._tracker = TensorBoard(self.path / "tensorboard") if tensorboard else None
        self._stages: dict[str, RunDirectory] = {}
        self._hold: Hold | None = None
        self._closed = False
        self._process = os.getpid()
        with distributed.together():
            if distributed.is_main():  # it makes and checks the directory, and alone writes
                try:
                    self._begin()
                except BaseException:  # whose traceback keeps this object
                    self.close()
                    raise

    def close(self) -> None:
        """Let other processes have the run, unless another object of this process has it; nothing is written any more."""
        self._closed, self._hold = True, None
        for stage in self._stages.values():
            stage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _begin(self) -> None:
        self._check_place()  # before anything is made there
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold = own(self.path)
        except OSError as error:
            self._refuse(error)
        existed = self._check_place()  # another process may have begun, and ended, before the lock was ours
        try:
            probe = self.path / f".probe{PARTIAL}"
            probe.touch()
            probe.unlink(missing_ok=True)
            if self.resume:
                for partial in self.path.glob(_PARTIALS):  # of a write that was killed
                    partial.unlink(missing_ok=True)
        except OSError as error:
            self._refuse(error)
        if existed:
            config = self.config
            config["resumed"].append(_now())
            self._write(self.config_path, _to_json(config, "config.json"))
            self.keep_records(lambda record: True)
        else:
            self._write(self.config_path, _to_json(_fresh_config(), "config.json"))

    @property
    def config_path(self) -> Path:
        """The description of the run; its presence is what makes a directory a run."""
        return self.path / "config.json"

    @property
    def log_path(self) -> Path:
        """The records of the run, one JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def checkpoint_path(self) -> Path:
        """The state of training after the last finished epoch."""
        return self.path / "training.safetensors"

    @property
    def config(self) -> dict[str, Any]:
        """What ``config.json`` says now."""
        return read_config(self.path)

    def configure(self, **specs: object) -> None:
        """Record what the run was asked to do, under ``specs`` in ``config.json``.

        Values are specs or plain data. What a resumed run records again must be what it recorded first, but for fields of
        specs that are ``indifferent``. Of several processes all call this, and the values of the main one count.

        Raises:
            RunError: a value differs from the recorded one; the message names every field that does.
            InputError: a value is not plain data.
        """
        with distributed.together():
            if distributed.is_main():
                self._record(specs)

    def _record(self, specs: Mapping[str, object]) -> None:
        config = self.config
        recorded = config["specs"]
        for key, value in specs.items():
            # A round trip through JSON, so that tuples and lists compare equal.
            data = json.loads(_to_json(value.to_dict() if isinstance(value, Spec) else value, key))
            before = recorded.get(key)
            if isinstance(value, Spec):  # written by a release that knew fewer fields, it asked for their defaults
                before = json.loads(_to_json(value.completed(before), key))
                if isinstance(before, dict):
                    before |= {name: data[name] for name in value.indifferent}
            if key in recorded and (changed := differences(before, data, key)):
                raise RunError(
                    f"{self.path}: the run that is there was asked for something else: {'; '.join(changed)}; "
                    "resume with the same values, or give a new directory"
                )
            recorded[key] = data
        self._write(self.config_path, _to_json(config, "config.json"))

    def stage(self, name: str) -> RunDirectory:
        """The sub-directory of one stage (``"ann"``, ``"qann"``), itself a run directory; the first call makes it."""
        if not _STAGE.fullmatch(name):
            raise SpecError(f"a stage is named by letters, digits, '-' and '_', got {name!r}")
        if name not in self._stages:
            self._require_open()
            place = self.path / name
            # A resumed run may have been killed before it came to this stage.
            self._stages[name] = RunDirectory(
                place, resume=self.resume and place.exists(), tensorboard=self._tracker is not None
            )
        return self._stages[name]

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record to the log; it is on the disk when the call returns."""
        self._require_open()
        if not distributed.is_main():
            return
        line = _to_json(record, "a log record", indent=None) + "\n"
        try:
            with open(self.log_path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if self._tracker is not None:
                self._tracker.add(record)
        except OSError as error:
            self._refuse(error)

    def records(self) -> list[dict[str, Any]]:
        """The records of the log, without a torn last line.

        Raises:
            RunError: a line before the last one is not a record.
        """
        return read_records(self.path)

    def keep_records(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the records for which ``keep`` is false, and a torn last line."""
        if distributed.is_main() and self.log_path.exists():
            lines = [_to_json(record, "a log record", indent=None) + "\n" for record in self.records() if keep(record)]
            self._write(self.log_path, "".join(lines))

    def write_json(self, name: str, data: object) -> Path:
        """Write ``data`` to the file ``name`` (``"metrics.json"``) of this directory, and return its path."""
        if name == "config.json":
            raise SpecError("config.json belongs to the run itself; use configure(), or give another name")
        place = self._place(name)
        self._write(place, _to_json(data, name))
        return place

    def read_json(self, name: str) -> Any:
        """What the JSON file ``name`` of this directory holds."""
        return read_json(self._place(name))

    def write_checkpoint(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Replace the checkpoint by ``tensors`` and ``metadata`` (plain data), in one step."""
        if not distributed.is_main():
            return
        header = {"polarspike": _to_json(metadata, "checkpoint metadata", indent=None)}
        # Clones, because safetensors refuses tensors that share memory (tied weights) or are not contiguous.
        whole = {
            name: tensor.detach().clone(memory_format=torch.contiguous_format).cpu()
            for name, tensor in tensors.items()
        }  # fmt: skip
        self._replace(self.checkpoint_path, lambda place: save_file(whole, place, header))

    def read_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the metadata of the checkpoint.

        Raises:
            CheckpointError: the file is damaged, or is not the checkpoint of a run.
        """
        place = self.checkpoint_path
        repair = "remove the file to train this stage from its start"
        try:
            with safe_open(place, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = json.loads(header["polarspike"])
        except FileNotFoundError:
            raise CheckpointError(
                f"{place}: expected the checkpoint of this run, found none; processes on several machines need a run "
                "directory that all of them see"
            ) from None
        except KeyError:
            raise CheckpointError(f"{place}: expected the checkpoint of a run, got another file; {repair}") from None
        except (OSError, SafetensorError, ValueError) as error:
            raise CheckpointError(f"{place}: damaged, or not a safetensors file ({error}); {repair}") from error
        return tensors, metadata

    def _check_place(self) -> bool:
        """Whether a run is there that may be continued."""
        if os.path.lexists(self.path) and not self.path.is_dir():
            raise RunError(f"{self.path}: expected a directory, got a file; give another directory")
        if not self.path.is_dir():
            if self.resume:
                raise RunError(f"{self.path}: there is no run to resume; check the path, or start without --resume")
            return False
        try:
            # What is not finished says nothing, and may be another's who writes it now.
            names = [e.name for e in self.path.iterdir() if e.name != LOCK and not e.match(_PARTIALS)]
        except OSError as error:
            self._refuse(error)
        if "config.json" not in names:
            if names:
                raise RunError(
                    f"{self.path}: expected an empty directory or a run, got {sorted(names)[:3]} and no config.json; "
                    "give another directory"
                )
            return False
        _ = self.config  # refuse a config.json of something else before advising anything
        if not self.resume:
            raise RunError(
                f"{self.path}: there is a run already; continue it with --resume (resume=True), "
                "or give another directory"
            )
        return True

    def _place(self, name: str) -> Path:
        if not name.endswith(".json") or Path(name).name != name:
            raise SpecError(f"expected a plain file name that ends with .json, got {name!r}")
        return self.path / name

    def _write(self, place: Path, text: str) -> None:
        self._replace(place, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def _replace(self, place: Path, write: Callable[[Path], object]) -> None:
        self._require_open()
        if not distributed.is_main():
            return
        try:
            with replacing(place) as partial:
                write(partial)
        except (OSError, SafetensorError) as error:
            self._refuse(error)

    def _require_open(self) -> None:
        if self._closed:
            raise RunError(
                f"{self.path}: expected an open run, this one was closed, and may be another's by now; "
                "open it again with RunDirectory(path, resume=True)"
            )
        if self._process != os.getpid():
            raise RunError(
                f"{self.path}: expected the process {self._process}, which has the run, this is its copy {os.getpid()} by "
                "os.fork; write there, or give the copy a directory of its own"
            )

    def _refuse(self, error: Exception) -> NoReturn:
        raise WriteError(
            f"{self.path}: the run directory cannot be written ({error}); "
            "check permissions and free space, or give another directory"
        ) from error


def _to_json(data: object, what: str, indent: int | None = 2) -> str:
    try:
        return json.dumps(data, indent=indent, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: expected plain data (numbers, text, lists, dicts), got {error}") from error


def _fresh_config() -> dict[str, Any]:
    try:
        version = importlib.metadata.version("polarspike")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": _now(),
        "resumed": [],
        "command": list(sys.argv),
        "versions": {"polarspike": version, "torch": torch.__version__, "python": platform.python_version()},
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "specs": {},
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
