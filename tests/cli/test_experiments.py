"""Train and demo: one run directory, killed and resumed."""

import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import polarspike as ps
from polarspike import data
from polarspike.experiments import recipes
from tests.cli.running import FLAGS, TINY, Call


def test_train_writes_the_run_and_prints_its_table(trained: Path) -> None:
    written = {path.name for path in trained.iterdir()}
    assert written == {
        "config.json", "ann", "qann", "control", "qann.safetensors", "snn.safetensors", "results.json", "report.txt",
        "report.html",
    }  # fmt: skip
    report = (trained / "report.txt").read_text()
    assert "QANN" in report and "codes compared" in report and "energy per image" in report
    results = json.loads((trained / "results.json").read_text())
    assert results["proofs"][0]["exact"] and [row["timesteps"] for row in results["snn"]["rows"]] == [1, 2]
    assert results["snn"]["total"] == 359
    assert results["proofs"][0]["sites"]["hidden.relu1"]["compared"] == 64 * 24  # proof_images times width
    assert json.loads((trained / "config.json").read_text())["specs"]["recipe"] == json.loads(
        json.dumps(TINY.to_dict())
    )


def test_demo_is_its_recipe_and_standard_output_carries_only_the_table(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    monkeypatch.setattr(recipes, "DEMO", TINY)
    code, out, err = call("demo", "--run", tmp_path / "run")
    assert code == 0 and out == (tmp_path / "run" / "report.txt").read_text() == (trained / "report.txt").read_text()
    assert "train the ANN" in err and "batch" not in err  # no progress bar where standard error is no terminal


def test_a_finished_run_is_resumed_from_its_directory_alone(call: Call, trained: Path) -> None:
    before = (trained / "results.json").read_bytes()
    code, out, _ = call("train", "--run", trained, "--resume")
    assert code == 0 and out == (trained / "report.txt").read_text()
    assert (trained / "results.json").read_bytes() == before


def test_a_run_is_not_resumed_as_something_else(call: Call, trained: Path) -> None:
    code, _, err = call("train", "--run", trained, "--resume", "--ann.epochs", "5")
    assert code == 2 and "recipe.ann.epochs was 2 and is 5 now" in err


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_run_is_not_resumed_on_other_data(
    call: Call, trained: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    digits = data.load("digits")
    same: data.Split = getattr(digits, part)
    for other, found in (
        (data.Split(same.images, same.labels.flip(0)), f"data.{part}.labels was"),
        (data.Split(same.images.flip(0), same.labels), f"data.{part}.images was"),
        (same.subset(torch.arange(300)), f"data.{part}.samples was {len(same)} and is 300 now"),
    ):
        changed = dataclasses.replace(digits, **{part: other})
        monkeypatch.setattr("polarspike.data.load", lambda *_, changed=changed, **__: changed)
        code, _, err = call("train", "--run", trained, "--resume")
        assert code == 2 and found in err


def test_workers_make_the_batches_of_a_recipe(call: Call, tmp_path: Path, trained: Path) -> None:
    code, out, _ = call("train", *FLAGS, "--run", tmp_path / "run", "--workers", "1")
    assert code == 0 and out == (trained / "report.txt").read_text()
    code, _, err = call("train", *FLAGS, "--run", tmp_path / "none", "--workers", "-1")
    assert code == 2 and "Recipe.workers: expected an integer of at least 0, got -1" in err


def test_a_fresh_head_on_the_weights_of_a_file(call: Call, tmp_path: Path) -> None:
    other = ps.models.create("mlp", num_classes=7, in_channels=1, image_size=(8, 8), width=24)
    torch.save(other.state_dict(), tmp_path / "w.pth")
    flags, place = [*FLAGS, "--weights", tmp_path / "w.pth"], tmp_path / "run"
    code, _, err = call("train", *flags, "--run", place)
    assert code == 2 and "2 of another shape: head.weight" in err and "--fresh-head True" in err and not place.exists()
    code, _, err = call("train", *FLAGS, "--fresh-head", "True", "--run", place)
    assert code == 2 and "Recipe.fresh_head: expected a file of weights" in err and not place.exists()
    code, out, err = call("train", *flags, "--fresh-head", "True", "--run", place)
    assert code == 0 and "a fresh head, as asked for: head.weight, head.bias (of another shape in the file)" in err
    assert "train the ANN: mlp on digits from the weights of w.pth and a fresh head, 2 epochs" in err
    code, again, _ = call("train", "--run", place, "--resume")
    assert code == 0 and again == out
    assert "<td>fresh_head</td><td>True</td>" in (place / "report.html").read_text()
    code, _, err = call("train", "--run", place, "--resume", "--fresh-head", "False")
    assert code == 2 and "--fresh-head True" in err  # the file does not fit without


def test_train_says_no_if_the_networks_differ(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = ps.convert

    def broken(qann: ps.QuantizedNetwork, spec: ps.ConvertSpec) -> ps.SpikingNetwork:
        snn = convert(qann, spec)
        with torch.no_grad():
            next(snn.parameters()).mul_(1.5)
        return snn

    monkeypatch.setattr("polarspike.experiments.experiment.convert", broken)
    code, _, err = call("train", *FLAGS, "--run", tmp_path / "run")
    assert code == 1 and "not exact at T = 1: the first difference is at hidden.relu1" in err


def test_interrupted_training_says_how_to_resume_and_does(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    place = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("polarspike.experiments.experiment.quantize_for", interrupt)
        code, out, err = call("train", *FLAGS, "--run", place)
    assert code == 130 and out == ""
    last = err.splitlines()[-1]
    assert last.startswith(f"interrupted: what is finished is in {place}; continue with: polarspike train ")
    code, out, _ = call(*shlex.split(last.partition("polarspike ")[2]))
    assert code == 0 and out == (trained / "report.txt").read_text()


def test_an_interrupt_before_the_run_directory_leaves_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("polarspike.cli.experiments.prepare", interrupt)
    code, _, err = call("demo", "--run", tmp_path / "run")
    assert code == 130 and err == "interrupted: nothing was written\n" and not (tmp_path / "run").exists()


def test_an_interrupted_conversion_leaves_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("polarspike.common.files.os.replace", interrupt)  # the file is written, not yet in its place
    code, out, err = call("convert", trained / "qann.safetensors", tmp_path / "snn.safetensors")
    assert (code, out, err) == (130, "", "interrupted: nothing was written\n") and not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written(call: Call, tmp_path: Path, trained: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(trained, place)
    (place / "report.txt").unlink()
    (place / "report.txt").mkdir()
    code, out, err = call("train", "--run", place, "--resume")
    assert code == 2 and out == "" and "report.txt cannot be written" in err
    assert (place / "results.json").exists()


def test_a_weight_on_spikes_is_for_the_quantized_network(call: Call, tmp_path: Path) -> None:
    code, out, err = call("train", *FLAGS, "--run", tmp_path / "run", "--qann.activity", "0.2", "--timesteps", "1")
    assert code == 0 and "SNN" in out, err
    place = tmp_path / "other"
    code, _, err = call("train", *FLAGS, "--run", place, "--ann.activity", "0.2")
    assert code == 2 and "no spikes to lower; give it to qann instead" in err and not place.exists()


def test_distillation_needs_no_more_than_its_flag(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("train", *FLAGS, "--run", tmp_path / "run", "--qann.distillation", "0.5", "--timesteps", "1")
    assert code == 0 and "SNN" in out


def test_a_file_is_exported_for_another_runtime(call: Call, tmp_path: Path, trained: Path) -> None:
    target = tmp_path / "net.pt2"
    options = ("--to", "torch-export", "--output", target)
    code, out, err = call("export", trained / "snn.safetensors", *options, "--images", "50")
    assert code == 0 and "0 of 500 output values differ" in out and "0 of 50 decisions differ" in out, err
    code, out, _ = call("export", trained / "snn.safetensors", *options)
    assert code == 0 and "0 of 80 output values differ" in out and [e.name for e in tmp_path.iterdir()] == ["net.pt2"]
    code, _, err = call("export", trained / "qann.safetensors", *options)
    assert code == 2 and "spiking" in err
    source = tmp_path / "net.pt2"
    source.write_bytes((trained / "snn.safetensors").read_bytes())
    code, _, err = call("export", source, "--to", "torch-export")
    assert code == 2 and "this is the network itself" in err
    code, _, err = call("export", trained / "snn.safetensors", *options, "--data", "digits")
    assert code == 2 and "--data: only a number of test images (--images N) reads a dataset, got --images 0" in err
    code, _, err = call("export", trained / "snn.safetensors", *options, "--images", "-1")
    assert code == 2 and "at least 0, got -1" in err


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_numbers(tmp_path: Path, trained: Path) -> None:
    place = tmp_path / "run"
    command = [sys.executable, "-m", "polarspike", "train", *FLAGS, "--run", str(place)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (place / "qann" / "config.json").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place / "results.json").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    assert done.stdout == (trained / "report.txt").read_text()
    assert (place / "results.json").read_bytes() == (trained / "results.json").read_bytes()
