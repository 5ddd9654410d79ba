"""Every recipe runs end to end on random images; what cannot work fails there, loudly."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import polarspike as ps
from polarspike import models
from polarspike.baselines.published import published
from polarspike.data.events import FrameSpec
from polarspike.errors import RunError
from polarspike.evaluation import Evaluation
from polarspike.experiments import Recipe, recipes, rehearsal
from polarspike.experiments.recipes import RECIPES
from polarspike.experiments.rehearsal import random_images, rehearse
from polarspike.spiking.through_time import LeakyPolarityNeuron
from polarspike.training_spec import TrainSpec

FOLDER = Path(__file__).parents[2] / "recipes"
#: Narrower here, for the time that all tests may take: but for their heads, the networks of two are rehearsed as they are by
#: the recipes of CIFAR-10, and the two of ImageNet take more than a minute of processor time each.
#: ``benchmarks/rehearsals.py`` rehearses every recipe as it is.
HEAVY = ("cifar100_vgg16", "tiny_imagenet_resnet18", "imagenet_resnet34", "imagenet_vit_s")


def small(recipe: Recipe) -> Recipe:
    """The recipe with fewer layers and channels of the same kinds."""
    if recipe.model == "vit":
        width, options = 16 * int(recipe.options["heads"]), {**recipe.options, "depth": 2}
        return dataclasses.replace(recipe, width=width, options=options)
    model = "resnet18" if recipe.model == "resnet34" else recipe.model
    return dataclasses.replace(recipe, model=model, width=8)


def test_every_recipe_has_its_file_and_every_file_its_recipe() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(RECIPES)
    for name, recipe in RECIPES.items():
        found = runpy.run_path(str(FOLDER / f"{name}.py"))
        assert found["RECIPE"] == recipe
        text = found["__doc__"]
        assert all(f"\n{part}" in text for part in ("Command:", "Hardware:", "Cost:", "Expected:", "Published:")), name
        epochs = (recipe.ann.epochs, recipe.qann.epochs)
        assert "{} + {} epochs".format(*epochs) in text, name
        if recipe not in recipes.PUBLISHED.values():
            assert f"polarspike train {name}" in text
        _, _, told = text.partition("Published:")
        told, _, _ = told.partition("\n\n")
        assert sorted(line.strip() for line in told.splitlines()[1:]) == sorted(by_others(recipe)), name
        assert told.splitlines()[0].strip() == ("by others, not reproduced here:" if by_others(recipe) else "unknown")


def by_others(recipe: Recipe) -> list[str]:
    """What is published for the data set and a network of this kind, or of none that is named."""
    lines = []
    for row in published():
        kinds = {"resnet18": "ResNet-18", "resnet20": "ResNet-20", "resnet34": "ResNet-34", "vgg16": "VGG-16"}
        kind = kinds.get(recipe.model, "ViT-S" if recipe.model == "vit" else "none")
        if _plain(row["dataset"]) == _plain(recipe.data) and row["architecture"] in ("", kind):
            larger = ", a larger ViT-S" if row["architecture"] == "ViT-S" and recipe.width != 384 else ""
            when = f" at T = {row['timesteps']}" if row["timesteps"] else ""
            late = f" (true latency {row['latency']})" if row["latency"] != row["timesteps"] else ""
            lines.append(f"{row['method']}{larger}: {row['snn_top1']} %{when}{late}")
    return lines


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_rehearses(name: str) -> None:
    recipe, said = RECIPES[name], list[str]()
    rehearse(small(recipe) if name in HEAVY else recipe, say=said.append)
    assert "verified at T = 1: 0 of" in " ".join(said) and "all 64 images right" in said[-1]
    if recipe.learns_order:
        assert "streamed frame by frame at T = 3: 0 of" in said[-2] and "through time has all 64" in said[-1]


def test_what_is_streamed_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["dvs128_gesture_event_cnn_through_time"]
    recipe = dataclasses.replace(recipe, frames=FrameSpec(bins=7), width=4, options={"stages": 1})
    learned: list[str] = []
    monkeypatch.setattr(rehearsal, "_learn", lambda what, *_: learned.append(what))
    monkeypatch.setattr(rehearsal, "evaluate", lambda *_: Evaluation({1: 64, 3: 64}, 64))
    said: list[str] = []
    rehearse(recipe, say=said.append)
    assert learned == ["the float network", "the quantized network", "the network through time"]
    assert "(6, 16, 16)" in said[0] and "streamed frame by frame at T = 3: 0 of" in said[-2]  # three frames are enough
    run = LeakyPolarityNeuron.run
    monkeypatch.setattr(LeakyPolarityNeuron, "run", lambda self, currents, _: run(self, currents, None))
    with pytest.raises(RunError, match=r"through time: \d+ codes differ between stream and sequence, first at stages"):
        rehearse(recipe)


@pytest.mark.slow
def test_integrated_frames_rehearse() -> None:
    said: list[str] = []
    recipe = RECIPES["n_mnist_event_cnn"]
    recipe = dataclasses.replace(recipe, width=8, reading="integrate", frames=FrameSpec(bins=3))
    rehearse(recipe, say=said.append)
    assert "64 random images (6, 16, 16)" in said[0] and any("verified at T = 3: 0 of" in line for line in said)


@pytest.mark.slow
def test_a_recipe_without_the_first_timestep_rehearses() -> None:
    recipe = dataclasses.replace(RECIPES["photo_patches_cnn"], width=8, quant=ps.QuantSpec(0, 3))
    said: list[str] = []
    rehearse(dataclasses.replace(recipe, qann=dataclasses.replace(recipe.qann, timesteps=(8,))), say=said.append)
    assert "all 64 images right at T = 1" in said[-1]


def test_random_images_have_the_shape_and_the_classes_of_the_dataset() -> None:
    made = random_images(RECIPES["imagenet_vit_s"])
    assert made.train.images.shape == (64, 3, 32, 32) and made.num_classes == 1000  # two patches a side
    assert random_images(RECIPES["n_mnist_event_cnn"]).in_channels == 20
    frames, _ = next(iter(random_images(RECIPES["dvs128_gesture_event_cnn_frames"]).evaluation(5)))
    assert frames.shape == (5, 10, 2, 16, 16)
    assert torch.equal(made.train.images, random_images(RECIPES["imagenet_vit_s"]).train.images)


def test_each_training_makes_a_step_as_the_recipe_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["dvs128_gesture_event_cnn_through_time"]
    alike = {"precision": "bf16", "averaging": 0.9, "distillation": 0.5, "accumulation": 2}
    recipe = dataclasses.replace(
        recipe,
        frames=FrameSpec(bins=2),
        width=4,
        options={"stages": 1},
        qann=dataclasses.replace(recipe.qann, **alike),  # type: ignore[arg-type]
        through_time=dataclasses.replace(recipe.through_time, **alike),  # type: ignore[arg-type]
    )
    monkeypatch.setattr(rehearsal, "_learn", lambda *_: None)
    monkeypatch.setattr(rehearsal, "evaluate", lambda *_: Evaluation({1: 64, 2: 64}, 64))
    said: list[str] = []
    rehearse(recipe, say=said.append)
    steps = [line.partition(":")[0] for line in said if "has made a step" in line]
    assert steps == [
        "the float network has made a step in fp32",
        "the quantized network has made a step in bf16 with its teacher",
        "the network through time has made a step in bf16 with its teacher",
    ]


class Stuck(nn.Module):
    """Answers the same whatever it sees, because no gradient reaches its features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 4, 3), nn.ReLU()
        self.head = nn.Linear(4 * 36, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.conv(x)).flatten(1) * 0.0)


SMALL = Recipe(
    data="digits",
    model="cnn",
    width=4,
    ann=TrainSpec(learning_rate=0.1),
    qann=TrainSpec(learning_rate=0.05),
    timesteps=(1, 2),
)


def test_a_network_that_cannot_learn_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "build_model", lambda dataset, recipe: Stuck())
    with pytest.raises(RunError, match=r"the float network: expected all 64 random images right .* got \d+; look at"):
        rehearse(SMALL)


def test_levels_that_are_too_few_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "_MOST_ROUNDS", 2)
    bad = dataclasses.replace(SMALL, qann=TrainSpec(learning_rate=1e-9, step_rate=0.0), quant=ps.QuantSpec(0, 1))
    with pytest.raises(RunError, match="the quantized network: expected all 64"):
        rehearse(dataclasses.replace(bad, width=16))


def test_a_conversion_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(qann: ps.QuantizedNetwork, spec: ps.ConvertSpec) -> ps.SpikingNetwork:
        snn = ps.convert(qann, spec)
        next(iter(snn.sites().values())).start.mul_(1.01)
        return snn

    monkeypatch.setattr(rehearsal, "convert", wrong)
    with pytest.raises(RunError, match=r"verify at T = 1: \d+ codes differ, first at"):
        rehearse(dataclasses.replace(SMALL, width=16))


def test_models_of_recipes_exist() -> None:
    assert {recipe.model for recipe in RECIPES.values()} <= set(models.names())
