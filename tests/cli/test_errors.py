"""Errors, start-up, and the commands that measure."""

import runpy
import sys
import warnings
from pathlib import Path

import pytest

import polarspike as ps
from polarspike import cli
from polarspike.experiments import Recipe, recipes
from tests.cli.running import RECIPES, TINY, Call


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
    code, _, err = call(*asked[:2], "--preset", "full", "--parts", "99")
    assert code == 2 and "--parts: expected numbers from 1 to " in err
    code, _, err = call(*asked[:2], "--run", tmp_path / "rivals.md", *small, "--methods", "ann")
    assert code == 2 and "rivals.md: expected a directory, or a place for one" in err
    code, _, err = call(*asked, "--threads", "0")
    assert code == 2 and "--threads: expected at least 1" in err


@pytest.mark.slow
def test_bench_writes_its_pages_before_the_error_of_a_run_that_failed_ends_it(call: Call, tmp_path: Path) -> None:
    small = ("--data", "digits", "--model", "cnn", "--width", "4", "--limit", "128", "--latencies", "1")
    small += ("--float-epochs", "1", "--epochs", "1", "--trained-steps", "1", "--direct-rates", "1e30")
    code, out, err = call("bench", "rivals", "--run", tmp_path, *small, "--methods", "lif", "ann")
    assert code == 2 and "error: 1 of 2 runs failed" in err
    assert "\nann " in out and "1 of 2 runs is missing" in out and "digits, cnn-4: method lif, " in out
    for name in ("rivals.md", "rivals.html"):
        page = (tmp_path / name).read_text()
        assert "1 of 2 runs is missing" in page and "failed: fit" in page
        assert page.index("Not complete") < page.index("digits, cnn-4: accuracy")
    code, out, err = call("bench", "rivals", "--run", tmp_path, *small, "--methods", "ann")
    assert code == 0 and "missing" not in out and "Not complete" not in (tmp_path / "rivals.md").read_text()


def test_a_recipe_by_name_is_rehearsed_and_leaves_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("train", "demo", "--rehearse", "--width", "8", "--timesteps", "1")
    assert code == 0 and "rehearsed: cnn on mnist-5k" in out and "verified at T = 1: 0 of" in err, err
    assert list(tmp_path.iterdir()) == []
    code, _, err = call("train", "demos", "--rehearse")
    assert code == 2 and "unknown recipe 'demos'" in err and "did you mean 'demo'?" in err
    code, out, err = call("train", "demo", "--rehearse", "--resume")
    assert (code, out) == (2, "") and err.startswith("error: --resume: train --rehearse is of random images"), err
    ignored = ("--run", "run", "--tensorboard", "--root", "data", "--download", "--device", "cuda")
    code, out, err = call("train", "demo", "--rehearse", *ignored)
    given = " and ".join(option for option in ignored if option.startswith("--"))
    assert (code, out) == (2, "") and err.startswith(f"error: {given}: ") and err.endswith("; leave them out\n")
    code, _, err = call("train", "demo", "--recipe", "mine.py")
    assert code == 2 and "error: --recipe: the recipe is that of the name in front, demo; leave it out" in err
    code, _, err = call("train", "--seed", "1", "demo")
    assert code == 2 and "a recipe's name in front of all options, got 'demo' behind one" in err
