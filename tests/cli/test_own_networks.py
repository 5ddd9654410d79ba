"""Convert, inspect and diagnose somebody's own network."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import polarspike as ps
from polarspike import sources
from polarspike.cli.network import TRAINING_FREE
from polarspike.cli.refinement import Likeness
from polarspike.specs import QuantSpec
from tests.cli.running import Call

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
    code, out, err = call("diagnose", qann, "--images", own[-1], "--quant.positive", 3)
    assert (code, out) == (2, "") and f"--quant: {qann} names the file of a quantized network" in err


def test_neurons_of_an_own_network_fire_as_asked(call: Call, tmp_path: Path, own: list[str]) -> None:
    asked = ["--max-spikes-per-step", 1, "--timesteps", 1, 3]
    code, out, err = call("convert", own[0], tmp_path / "snn", *own[1:], *asked)
    assert code == 0 and "T=3:" in out and out.count("0 different") == 2, out + err
    network = ps.load(tmp_path / "snn")
    assert isinstance(network, ps.SpikingNetwork) and network.spec == ps.ConvertSpec(max_spikes_per_step=1)


def test_more_timesteps_than_a_window_are_refused_before_any_work(call: Call, tmp_path: Path, own: list[str]) -> None:
    asked = ["--window", 2, "--timesteps", 1, 4, "--reconstruct"]
    code, out, err = call("convert", own[0], tmp_path / "snn", *own[1:], *asked)
    assert code == 2 and not out and "convert: the network starts again after 2 steps" in err and "reconstr" not in err


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
    assert call("verify", *files, "--timesteps", 1, "--images-count", 20)[0] == 0
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


def test_what_convert_wrote_is_exported_on_the_same_images(call: Call, tmp_path: Path, own: list[str]) -> None:
    snn, target = tmp_path / "snn.safetensors", tmp_path / "net.integer"
    assert call("convert", own[0], snn, *own[1:])[0] == 0
    code, out, err = call("export", snn, "--to", "integer", "--output", target, "--images", own[4])
    assert code == 0 and "of 12 decisions differ" in out and "note" not in err, err
    pictures = pytest.importorskip("PIL.Image")
    (tmp_path / "photos").mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(256, size=(3, 16, 20, 3), dtype=np.uint8)):
        pictures.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    code, _, err = call("export", snn, "--to", "integer", "--output", target, "--images", tmp_path / "photos")
    assert code == 2 and "expected the note 'normalization', as convert --images and train write it, got none" in err
    options = [*own[1:3], "--images", tmp_path / "photos", "--shape", "3,8,8", "--normalize", "imagenet"]
    snn = tmp_path / "other.safetensors"
    assert call("convert", own[0], snn, *options)[0] == 0
    code, out, err = call("export", snn, "--to", "integer", "--output", target, "--images", tmp_path / "photos")
    assert code == 0 and "of 3 decisions differ" in out, err
    code, _, err = call("export", snn, "--to", "integer", "--output", target, "--images", tmp_path / "none")
    assert code == 2 and "is no folder, no file, and no dataset" in err


def test_what_convert_wrote_is_verified_on_pictures_without_labels(call: Call, tmp_path: Path, own: list[str]) -> None:
    pictures = pytest.importorskip("PIL.Image")
    (tmp_path / "photos").mkdir()
    for index, pixels in enumerate(np.random.default_rng(0).integers(256, size=(3, 16, 20, 3), dtype=np.uint8)):
        pictures.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    files = tmp_path / "qann.safetensors", tmp_path / "snn.safetensors"
    made = ["--images", tmp_path / "photos", "--shape", "3,8,8", "--normalize", "none", "--qann", files[0]]
    assert call("convert", own[0], files[1], *own[1:3], *made)[0] == 0
    given = ["--images", tmp_path / "photos"]
    for options, compared in (
        (["--timesteps", 1, 2], 3),
        (["--precision", "fp64", "--images-count", 2], 2),
        (["--against", "events", "--timesteps", 2], 6),  # with both networks
        (["--varying", "--timesteps", 2], 3),
    ):
        code, out, err = call("verify", *files, *given, *options)
        assert code == 0 and "NOT EXACT" not in out, err
        assert f": 0 of {compared * 6 * 36} codes differ" in out, out
    code, out, err = call("verify", *files, "--images", own[4])  # floats as they are
    assert code == 0 and "EXACT" in out, err
    code, _, err = call("verify", *files, "--images", tmp_path / "none")
    assert code == 2 and "is no folder, no file, and no dataset" in err


def test_verify_takes_a_root_for_a_dataset_alone(call: Call, tmp_path: Path, own: list[str]) -> None:
    files = tmp_path / "qann.safetensors", tmp_path / "snn.safetensors"
    assert call("convert", own[0], files[1], *own[1:], "--qann", files[0])[0] == 0
    for images in (own[4], tmp_path):
        code, out, err = call("verify", *files, "--images", images, "--root", tmp_path)
        assert code == 2 and not out, err
        assert f"--root: --images {images} says where the images are from; leave it out" in err
    # It reaches a dataset, and this one has no files to be elsewhere.
    made = ["--random-weights", "--images", "digits", "--images-count", 20, "--qann", files[0], "--force"]
    code, _, err = call("convert", own[0].replace("create", "digits"), files[1], *made)
    assert code == 0, err
    code, _, err = call("verify", *files, "--images", "digits", "--root", tmp_path)
    assert code == 2 and "digits: it is part of the package and read from no other folder" in err


def test_a_picture_that_cannot_be_read_stops_convert(call: Call, tmp_path: Path, own: list[str]) -> None:
    pictures = pytest.importorskip("PIL.Image")
    (tmp_path / "photos").mkdir()
    pictures.new("RGB", (8, 8)).save(tmp_path / "photos" / "0.png")
    (tmp_path / "photos" / "1.png").write_bytes(b"no picture")
    options = [*own[1:3], "--images", tmp_path / "photos", "--shape", "3,8,8", "--normalize", "none"]
    says = refused(call, tmp_path, own[0], tmp_path / "new", *options)
    assert "1.png: expected a picture" in says


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({"crop": "half"}, "could not convert string to float: 'half'"),
        ({"crop": 1.5}, "crop: expected a number above 0 and at most 1, got 1.5"),
        ({"shape": [3, 0, 8]}, "shape: expected three positive integers C,H,W"),
        ({"shape": 3}, "'int' object is not iterable"),
        ({"normalization": "imagenet"}, "normalization: expected mean and std of each channel, got 'imagenet'"),
        ({"shape": [3, 8.5, 8]}, "shape: expected three positive integers C,H,W such as 3,224,224, got [3, 8.5, 8]"),
        ({"shape": [True, True, True]}, "shape: expected three positive integers"),
        ({"crop": 10**400}, "too large"),
    ],
    ids=str,
)
def test_notes_that_mean_nothing_are_named(
    call: Call, tmp_path: Path, own: list[str], note: dict[str, object], message: str
) -> None:
    model, path = sources.build(own[0], Path(own[2])), tmp_path / "qann.safetensors"
    qann = ps.quantize(model, QuantSpec(), example=torch.zeros(2, 3, 8, 8))
    ps.calibrate(qann, [torch.from_numpy(np.load(own[-1]))])
    qann.notes = note
    ps.save(qann, path)
    code, _, err = call("diagnose", path, "--images", own[-1])
    assert code == 2 and f"{path}: expected the notes 'shape' (C, H, W), 'normalization' and 'crop'" in err
    assert message in err
    if "shape" not in note:  # the options stand for what the file says
        qann.notes = {"crop": 0.5, "shape": [3, 9, 9]}
        ps.save(qann, path)
        assert call("diagnose", path, "--images", own[-1])[0] == 2
        assert call("diagnose", path, "--images", own[-1], "--shape", "3,8,8")[0] == 0


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
    plain = [value for value in rest if value not in ("--images", own[-1])]
    assert "--timesteps: without --images" in refused(call, tmp_path, factory, new, *plain, "--timesteps", 1, 2)
    assert "--resource: without --budget" in refused(call, tmp_path, factory, new, *rest, "--resource", "bits")
    assert "15 levels x 1000000" in refused(call, tmp_path, factory, new, *rest, "--timesteps", 1, 1000000)
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


@pytest.mark.parametrize(
    "options",
    [
        ("--timesteps", "1", "4"), ("--quant.positive", "7"), ("--resource", "joules"), ("--images-count", "8"),
        ("--batch-size", "4"), ("--crop", "0.9"), ("--options", "num_classes=3"), ("--root", "."), ("--device", "cuda"),
    ],
)  # fmt: skip
def test_no_option_of_a_float_network_is_passed_over(
    call: Call, tmp_path: Path, trained: Path, options: tuple[str, ...]
) -> None:
    says = refused(call, tmp_path, trained / "qann.safetensors", tmp_path / "new", *options)
    assert f"calibrated already; leave {options[0].split('.')[0]} out" in says
