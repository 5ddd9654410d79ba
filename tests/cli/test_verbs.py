"""Convert, evaluate and verify a run's files."""

import json
from pathlib import Path

import pytest

import polarspike as ps
from tests.cli.running import Call


def test_convert_writes_the_same_network_once(call: Call, tmp_path: Path, trained: Path) -> None:
    target = tmp_path / "snn.safetensors"
    code, out, err = call("convert", trained / "qann.safetensors", target)
    assert code == 0 and "hidden.relu1: quantizer -> neuron, levels (0, 3)" in out and "written" in err
    assert target.read_bytes() == (trained / "snn.safetensors").read_bytes()
    code, out, err = call("convert", trained / "qann.safetensors", target)
    assert code == 2 and out == "" and "exists already" in err and "--force" in err
    assert call("convert", trained / "qann.safetensors", target, "--force")[0] == 0


@pytest.mark.parametrize(
    ("flags", "fires"),
    [
        (["--neuron", "holding"], ps.ConvertSpec(neuron="holding")),
        (["--max-spikes-per-step", 1, "--window", 4], ps.ConvertSpec(max_spikes_per_step=1, window=4)),
    ],
)
def test_convert_gives_neurons_as_asked(
    call: Call, tmp_path: Path, trained: Path, flags: list[object], fires: ps.ConvertSpec
) -> None:
    target = tmp_path / "snn.safetensors"
    code, _, err = call("convert", trained / "qann.safetensors", target, *flags)
    assert code == 0, err
    network = ps.load(target)
    assert isinstance(network, ps.SpikingNetwork) and network.spec == fires
    code, out, err = call("evaluate", target)
    assert (
        code == 0
        and ("\n   8 " in out) == (fires.window is None)
        and ("not counted for capped" in out) == (fires.window == 4)
    )
    code, out, err = call("verify", trained / "qann.safetensors", target, "--timesteps", 2)
    assert code in (0, 4) and out.count(" 0 of 12288 codes differ") == 2, out + err  # 4: too few different codes


def test_convert_refuses_neurons_that_cannot_be(call: Call, tmp_path: Path, trained: Path) -> None:
    asked = ["--neuron", "holding", "--max-spikes-per-step", 1]
    code, _, err = call("convert", trained / "qann.safetensors", tmp_path / "snn.safetensors", *asked)
    assert code == 2 and "max_spikes_per_step needs neuron='polarity'" in err and not list(tmp_path.iterdir())


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


def test_evaluate_takes_workers(call: Call, trained: Path) -> None:
    code, _, err = call("evaluate", trained / "snn.safetensors", "--workers", -1)
    assert code == 2 and "--workers: expected at least 0, got -1" in err
    assert call("evaluate", trained / "snn.safetensors", "--workers", 1, "--timesteps", 1)[0] == 0


def test_a_quantized_network_is_evaluated_at_one_timestep_only(call: Call, trained: Path) -> None:
    code, _, err = call("evaluate", trained / "qann.safetensors", "--timesteps", 1, 2)
    assert code == 2 and "has no time" in err


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--precision", "bf16"],
        ["--precision", "fp64", "--varying"],
        ["--against", "events", "--images-count", "4"],
        ["--images", "digits"],
    ],
    ids=" ".join,
)
def test_verify_proves(call: Call, trained: Path, options: list[str]) -> None:
    files = trained / "qann.safetensors", trained / "snn.safetensors"
    code, out, err = call("verify", *files, "--timesteps", 1, 3, *(options or ["--images-count", "64"]))
    assert (code, err) == (0, "")
    assert [line[:3] for line in out.splitlines() if line.startswith("T=")] == ["T=1", "T=3"]
    assert "EXACT" in out and ("event simulator" in out) == ("events" in options)


def test_varying_inputs_vary(call: Call, trained: Path) -> None:
    files = trained / "qann.safetensors", trained / "snn.safetensors"
    options = ["--timesteps", "2", "--images-count", "32", "--precision", "fp64"]
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
        "verify",
        trained / "qann.safetensors",
        tmp_path / "other.safetensors",
        "--images-count",
        16,
        "--against",
        against,
    )
    assert code == 1 and "NOT EXACT" in out and "first difference: hidden.relu2" in out and "not exact at T = 1" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--timesteps", "0"], "at least 1"),
        (["--timesteps", "1", "2", "3000000"], "3 levels x 3000000 timesteps"),
        (["--images-count", "400"], "1..359, got 400"),
        (
            ["--images", "400"],
            "a folder of pictures, a file or a dataset, got 400; how many of them is --images-count 400",
        ),
        (["--images", "digits", "--data", "digits"], "--data: --images digits says where the images are from"),
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
