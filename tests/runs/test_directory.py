"""Run directories: refused places, atomic files, torn logs, stages."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from polarspike.errors import CheckpointError, InputError, RunError, SpecError
from polarspike.runs import RunDirectory, differences
from polarspike.runs import directory as runs
from polarspike.specs import QuantSpec
from polarspike.training_spec import TrainSpec


def test_a_new_run_describes_itself(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "deep" / "run")
    run.configure(train=TrainSpec(epochs=3), quant=QuantSpec(2, 6), model={"name": "mlp", "sizes": (3, 4)})
    config = json.loads((tmp_path / "deep" / "run" / "config.json").read_text())
    assert config["versions"]["torch"] == torch.__version__
    assert config["cores"] == os.cpu_count()
    assert config["command"] and config["created"] and config["resumed"] == []
    assert TrainSpec.from_dict(config["specs"]["train"]) == TrainSpec(epochs=3)
    assert config["specs"]["model"]["sizes"] == [3, 4]


def test_a_run_is_continued_only_on_request(tmp_path: Path) -> None:
    RunDirectory(tmp_path)
    with pytest.raises(RunError, match="--resume"):
        RunDirectory(tmp_path)
    assert len(RunDirectory(tmp_path, resume=True).config["resumed"]) == 1


def test_a_run_killed_before_it_began_is_continued(tmp_path: Path) -> None:
    (tmp_path / ".config.json.abcd1234.partial").write_text("{")
    (tmp_path / ".probe.partial").touch()
    assert RunDirectory(tmp_path, resume=True).config["resumed"] == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("there", ["thesis.tex", "config.json", None])
def test_what_is_being_written_goes_only_where_a_run_is_continued(tmp_path: Path, there: str | None) -> None:
    partial = tmp_path / ".training.safetensors.abcd1234.partial"
    partial.write_text("half")
    if there == "config.json":
        RunDirectory(tmp_path)  # another process, beginning: what is not finished is in nobody's way
    elif there:
        (tmp_path / there).write_text("work")
    if there:
        with pytest.raises(RunError):
            RunDirectory(tmp_path)
    assert partial.exists()
    if there != "thesis.tex":
        RunDirectory(tmp_path, resume=True)
        assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


def test_a_kill_between_probe_and_configuration_leaves_a_place_to_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            RunDirectory(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    RunDirectory(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


def test_other_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("work")
    for resume in (False, True):
        with pytest.raises(RunError, match=r"expected an empty directory or a run, got \['thesis.tex'\]"):
            RunDirectory(tmp_path, resume=resume)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ['{"name": "pack"}', '{"format": "polarspike-run", "version": 99}', "[]", "not json"])
def test_a_config_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunError, match=r"config\.json: expected"):
        RunDirectory(tmp_path, resume=True)
    assert (tmp_path / "config.json").read_text() == text


def test_there_must_be_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run to resume"):
        RunDirectory(tmp_path / "typo", resume=True)
    assert not (tmp_path / "typo").exists()


def test_unwritable_places_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="expected a directory, got a file"):
        RunDirectory(file)
    with pytest.raises(RunError, match="cannot be written"):
        RunDirectory(file / "run")

    def denied(path: Path, *args: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", denied)  # chmod would not stop a test that runs as root
    with pytest.raises(RunError, match=r"cannot be written.*Permission denied.*check permissions"):
        RunDirectory(tmp_path / "run")
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(RunError, match="Permission denied"):
        RunDirectory(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    run.write_json("metrics.json", {"accuracy": 0.5})

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(runs.os, "fsync", full)
        with pytest.raises(RunError, match="No space left"):
            run.write_json("metrics.json", {"accuracy": 0.9})
        with pytest.raises(RunError, match="No space left"):
            run.append({"epoch": 1})
    assert run.read_json("metrics.json") == {"accuracy": 0.5}
    run.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.json", "log.jsonl", "metrics.json"]


def test_json_files_have_plain_names_and_plain_data(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.write_json("metrics.json", {"a": [1, 2]}) == tmp_path / "metrics.json"
    for name in ("../metrics.json", "metrics.txt", "config.json"):
        with pytest.raises(SpecError):
            run.write_json(name, {})
    with pytest.raises(InputError, match=r"metrics\.json: expected plain data"):
        run.write_json("metrics.json", {"accuracy": torch.ones(())})
    with pytest.raises(InputError, match="expected plain data"):
        run.append({"loss": float("nan")})
    with pytest.raises(RunError, match="no such file"):
        run.read_json("other.json")


def test_the_log_survives_a_torn_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for epoch in (1, 2, 3):
        run.append({"epoch": epoch})
    with open(run.log_path, "a") as file:
        file.write('{"epoch": 4, "lo')
    assert [record["epoch"] for record in run.records()] == [1, 2, 3]
    again = RunDirectory(tmp_path, resume=True)
    again.keep_records(lambda record: record["epoch"] <= 2)
    again.append({"epoch": 3, "second": True})
    assert again.records() == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3, "second": True}]


@pytest.mark.parametrize("damage", ["7", '{"epoch": '])
def test_a_damaged_log_is_named_by_line(tmp_path: Path, damage: str) -> None:
    run = RunDirectory(tmp_path)
    run.log_path.write_text(f'{{"epoch": 1}}\n{damage}\n{{"epoch": 2}}\n')
    with pytest.raises(RunError, match=r"log\.jsonl, line 2"):
        RunDirectory(tmp_path, resume=True)


def test_a_resumed_run_was_asked_for_the_same(tmp_path: Path) -> None:
    RunDirectory(tmp_path).configure(train=TrainSpec(epochs=3))
    run = RunDirectory(tmp_path, resume=True)
    run.configure(train=TrainSpec(epochs=3), extra=1)
    with pytest.raises(RunError, match=r"train\.epochs was 3 and is 5 now; train\.seed was 0 and is 1 now"):
        run.configure(train=TrainSpec(epochs=5, seed=1))
    assert run.config["specs"]["train"]["epochs"] == 3


def test_stages_are_runs_of_their_own(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    ann = run.stage("ann")
    assert run.stage("ann") is ann and ann.path == tmp_path / "ann"
    ann.append({"epoch": 1})
    again = RunDirectory(tmp_path, resume=True)
    assert again.stage("ann").records() == [{"epoch": 1}]
    assert again.stage("qann").records() == []  # the first run was killed before it came here
    for name in ("../ann", "", "a/b", ".hidden"):
        with pytest.raises(SpecError, match="a stage is named by"):
            run.stage(name)


def test_checkpoints_hold_tied_strided_and_scalar_tensors(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors = {"a": weight, "tied": weight, "view": weight[:, 1:].transpose(0, 1), "count": torch.tensor(7)}
    run.write_checkpoint(tensors, {"epoch": 3, "history": [{"loss": 0.1}]})
    read, metadata = run.read_checkpoint()
    assert metadata == {"epoch": 3, "history": [{"loss": 0.1}]}
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_checkpoint({"a": torch.randn(1000)}, {"epoch": 1})
    whole = run.checkpoint_path.read_bytes()
    for damaged in (b"", b"just a text file\n", whole[:-100], whole[: len(whole) // 2]):
        run.checkpoint_path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"training\.safetensors: damaged, or not a safetensors file"):
            run.read_checkpoint()
    runs.save_file({"a": torch.ones(1)}, run.checkpoint_path)
    with pytest.raises(CheckpointError, match="expected the checkpoint of a run"):
        run.read_checkpoint()


def test_differences_name_the_place() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, "spec") == ["spec.a.c was 2 and is 3 now"]
    assert differences({"a": 1}, {}, "spec") == ["spec.a was 1 and is None now"]
    assert differences([1, 2], [1, 2], "x") == []
