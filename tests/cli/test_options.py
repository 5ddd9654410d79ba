"""Help, options, and recipes as files."""

import re
from pathlib import Path

import pytest

import polarspike as ps
from polarspike import cli
from polarspike.cli.experiments import Train, read_recipe
from polarspike.experiments import Recipe, recipes
from polarspike.specs import QuantSpec
from tests.cli.running import FLAGS, RECIPES, TINY, Call, in_one_line


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"polarspike {ps.__version__}\n", "")


def test_help_names_every_command(call: Call) -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    listed = re.findall(r"• (\w+)", out)
    assert listed == [
        "demo", "train", "inspect", "convert", "diagnose", "evaluate", "verify", "export", "run", "bench", "report",
        "datasets", "models", "doctor",
    ]  # fmt: skip
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
        "from polarspike.experiments import Recipe\nfrom polarspike.specs import QuantSpec\n"
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
