"""The commands that say what there is: data sets, networks, and this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from polarspike import data, models
from polarspike.cli import doctor, main
from polarspike.data import registry
from polarspike.errors import DataError
from polarspike.experiments.recipes import RECIPES


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_every_data_set_and_network_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for command, names in (("datasets", data.names()), ("models", models.names())):
        code, out, _ = said(capsys, command)
        assert code == 0 and {line.split()[0] for line in out.splitlines()[1:]} >= set(names)


def test_a_data_set_says_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "datasets", "digits")
    dataset = data.load("digits")
    assert code == 0 and f"{len(dataset.train)} train, {len(dataset.test)} test" in out
    assert "CC BY 4.0" in out and f"mean {dataset.normalization.mean[0]:.4f}" in out and "shift 1" in out
    code, out, _ = said(capsys, "datasets", "mnist-5k")
    assert code == 0 and any(name in out for name, recipe in RECIPES.items() if recipe.data == "mnist-5k")


def test_a_data_set_that_is_not_there_says_how_to_get_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = said(capsys, "datasets", "cifar-10", "--root", str(tmp_path))
    assert code == 2 and out == "" and str(tmp_path) in err and "cifar-10-binary.tar.gz" in err
    code, _, err = said(capsys, "datasets", "digit")
    assert code == 2 and "did you mean 'digits'?" in err


def test_a_simulation_is_called_one(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "datasets")[1].splitlines()
    assert all("simulated" in line for line in lines if line.startswith(("events-", "saccade-")))
    assert not any("simulated" in line for line in lines if line.startswith(("n-", "cifar", "dvs")))


def test_a_network_says_its_size_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "models", "cnn", "--classes", "7", "--channels", "1")
    count = sum(p.numel() for p in models.create("cnn", num_classes=7, in_channels=1).parameters())
    assert code == 0 and f"{count:,} at their defaults" in out and "width" in out
    for command, options in (("models", ["--classes", "7"]), ("datasets", ["--download"])):
        code, out, err = said(capsys, command, *options)
        assert (code, out) == (2, "") and err.startswith(f"error: {options[0]}: without the name of a "), err
    code, _, err = said(capsys, "models", "cnm")
    assert code == 2 and "did you mean 'cnn'?" in err


def test_the_doctor_proves_and_lists(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = said(capsys, "doctor")
    assert code == 0 and "0 of " in out and "codes differ" in out
    assert "accelerate" in out and "torchvision" in out
    monkeypatch.setattr(doctor, "_proof", lambda: (False, "3 of 9 codes differ"))
    monkeypatch.setattr(doctor, "_CPU_INFO", Path("/nowhere"))
    code, out, _ = said(capsys, "doctor")
    assert code == 1 and "3 of 9" in out and "cannot be read" in out


def test_a_reader_without_a_summary_is_refused() -> None:
    with pytest.raises(DataError, match="needs a docstring"):
        registry.register("nameless", registry.Shape(1, 2, 2, 2))(lambda source: data.load("digits"))
    assert "nameless" not in data.names()
