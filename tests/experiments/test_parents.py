"""Trained weights of other classes: the body from a file, a fresh head, and the training that joins them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import data, models
from polarspike.data import Augmentation
from polarspike.errors import CheckpointError, RunError, SpecError
from polarspike.experiments import Recipe, experiment, parents
from polarspike.experiments.experiment import carry_out, prepare
from polarspike.experiments.rehearsal import rehearse
from polarspike.report.record import Record
from polarspike.report.run_page import run_page
from polarspike.runs import RunDirectory
from polarspike.sources import Weights
from polarspike.specs import QuantSpec
from polarspike.training_spec import TrainSpec

SMALL = Recipe(
    data="digits",
    model="mlp",
    width=16,
    batch_size=256,
    ann=TrainSpec(epochs=2, warmup_epochs=0.0),
    quant=QuantSpec(0, 3),
    qann=TrainSpec(epochs=1, learning_rate=0.02, warmup_epochs=0.0),
    timesteps=(1,),
    calibration_images=64,
    proof_images=32,
    augmentation=Augmentation(),
)
HEAD = "weights: a fresh head, as asked for: head.weight, head.bias (of another shape in the file); all others are those of "


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """One that learns on from a network of seven classes."""
    torch.manual_seed(1)
    made = models.create("mlp", num_classes=7, in_channels=1, image_size=(8, 8), width=16)
    torch.save(made.state_dict(), tmp_path / "seven.pth")
    return dataclasses.replace(SMALL, weights=str(tmp_path / "seven.pth"), fresh_head=True)


def body(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items() if not name.startswith("head.")}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- recipes ------------------------------------------------------------------------------------------------------------


def test_without_a_fresh_head_a_recipe_says_nothing_of_it(recipe: Recipe) -> None:
    assert "fresh_head" not in SMALL.to_dict() and Recipe.from_dict(SMALL.to_dict()) == SMALL
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    whole = dataclasses.replace(recipe, fresh_head=False)
    assert SMALL.trains_ann and recipe.trains_ann and not whole.trains_ann
    with pytest.raises(SpecError, match=r"Recipe\.fresh_head: expected a file of weights, .* give --weights FILE"):
        dataclasses.replace(SMALL, fresh_head=True)
    with pytest.raises(SpecError, match=r"Recipe\.fresh_head: expected True or False, got 1"):
        dataclasses.replace(recipe, fresh_head=1)  # type: ignore[arg-type]


# --- experiments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [prepare, rehearse])
def test_another_number_of_classes_names_the_fresh_head(recipe: Recipe, start: Callable[[Recipe], object]) -> None:
    with pytest.raises(
        CheckpointError, match=r"2 of another shape: head\.weight \(model \(10, 16\).*--fresh-head True"
    ):
        start(dataclasses.replace(recipe, fresh_head=False))
    with pytest.raises(CheckpointError, match="does not fit mlp") as refusal:
        start(dataclasses.replace(recipe, width=17))  # of which no layer fits
    assert "--fresh-head" not in str(refusal.value)


def test_the_float_network_is_trained_from_the_body_of_the_file(recipe: Recipe, tmp_path: Path) -> None:
    file = torch.load(tmp_path / "seven.pth")
    said: list[str] = []
    prepared = prepare(recipe)
    start, fresh = prepared.ann.state_dict(), prepare(dataclasses.replace(recipe, weights=None, fresh_head=False)).ann
    assert same(body(start), body(file)) and not same(body(start), body(fresh.state_dict()))
    assert start["head.weight"].shape == (10, 16) and prepared.said == (f"{HEAD}seven.pth",)
    before = body(start)
    outcome = carry_out(prepared, RunDirectory(tmp_path / "run"), say=said.append)
    assert said[0] == prepared.said[0] and not same(before, body(prepared.ann.state_dict()))
    assert said[1] == "train the ANN: mlp on digits from the weights of seven.pth and a fresh head, 2 epochs (cpu)"
    assert len(RunDirectory(tmp_path / "run" / "ann", resume=True).records()) == 2 and outcome.proofs[0].exact
    notes = ps.load(tmp_path / "run" / "snn.safetensors").notes  # type: ignore[union-attr]
    assert notes["weights"]["file"] == "seven.pth" and notes["weights"]["fresh_head"] is True
    specs = json.loads((tmp_path / "run" / "config.json").read_text())["specs"]
    assert specs["recipe"]["fresh_head"] is True and specs["weights"] == notes["weights"]["sha256"]
    learning = next(part for part in run_page(Record.read(tmp_path / "run")) if part.title == "Learning")
    assert [row[0] for row in learning.table[1:]] == ["ANN", "QANN", "ANN, continued"]


def test_training_begins_with_what_was_taken_over(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []

    def fit(model: nn.Module, *_: object, **__: object) -> None:
        seen.append(body(model.state_dict()))
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        carry_out(prepare(recipe), RunDirectory(tmp_path / "run"))
    assert same(seen[0], body(torch.load(tmp_path / "seven.pth")))


@pytest.mark.parametrize("stage", ["ann", "quantize"])
def test_a_killed_run_with_a_fresh_head_goes_on(
    recipe: Recipe, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = carry_out(prepare(recipe), RunDirectory(tmp_path / "whole"))
    append = RunDirectory.append

    def kill(run: RunDirectory, record: dict[str, object]) -> None:
        append(run, record)
        if run.path.name == "ann":
            raise KeyboardInterrupt

    def stop(message: str) -> None:
        if message.startswith(stage):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if stage == "ann":  # after its first epoch
            patch.setattr(RunDirectory, "append", kill)
        carry_out(prepare(recipe), RunDirectory(tmp_path / "run"), say=stop)
    resumed = carry_out(prepare(recipe), RunDirectory(tmp_path / "run", resume=True))
    assert resumed.to_dict() == whole.to_dict()
    assert same(dict(whole.network.state_dict()), dict(resumed.network.state_dict()))
    path = tmp_path / "seven.pth"
    torch.save(prepare(dataclasses.replace(recipe, weights=None, fresh_head=False)).ann.state_dict(), path)
    with pytest.raises(RunError, match="weights was '"):  # whose body is another
        carry_out(prepare(recipe), RunDirectory(tmp_path / "run", resume=True))
    with pytest.raises(RunError, match=r"recipe\.fresh_head"):
        carry_out(prepare(dataclasses.replace(recipe, fresh_head=False)), RunDirectory(tmp_path / "run", resume=True))


def test_a_head_that_would_fit_is_left_out_and_that_is_said(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(2)
    ten = models.create("mlp", num_classes=10, in_channels=1, image_size=(8, 8), width=16)
    torch.save(ten.state_dict(), tmp_path / "ten.pth")
    prepared = prepare(dataclasses.replace(recipe, weights=str(tmp_path / "ten.pth")))
    assert "those of the file would fit, and are left out" in prepared.said[0]
    found = prepared.ann.state_dict()
    assert same(body(found), body(ten.state_dict())) and not torch.equal(found["head.weight"], ten.head.weight)  # type: ignore[arg-type,union-attr]


def test_a_rehearsal_takes_a_fresh_head_and_says_so(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("polarspike.experiments.rehearsal._learn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        rehearse(recipe, say=said.append)
    assert said[1] == f"{HEAD}seven.pth" and "has made a step" in said[-1]


# --- other packages -----------------------------------------------------------------------------------------------------

OPTIONS: dict[str, int | str] = {"depth": 1, "embed_dim": 12, "num_heads": 2, "patch_size": 4}
VIT = "timm:vit_tiny_patch16_224"


def test_a_transformer_of_timm_learns_on_at_another_image_size(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    built = timm.create_model("vit_tiny_patch16_224", num_classes=1000, in_chans=1, img_size=16, **OPTIONS)
    torch.save(built.state_dict(), tmp_path / "vit.pth")
    recipe = dataclasses.replace(
        SMALL, model=VIT, width=None, options=OPTIONS, weights=str(tmp_path / "vit.pth"), quant=QuantSpec(7, 8),
        fresh_head=True,
    )  # fmt: skip
    prepared = prepare(recipe)
    assert prepared.said == (
        "weights: pos_embed is resampled by timm, from 4x4 patches to 2x2",
        f"{HEAD}vit.pth",
    )
    assert prepared.dataset.normalization == data.Normalization((0.5,), (0.5,))  # what the body was trained with
    found = prepared.ann.state_dict()
    assert torch.equal(found["blocks.0.attn.qkv.weight"], built.state_dict()["blocks.0.attn.qkv.weight"])
    assert found["pos_embed"].shape == (1, 5, 12) and found["head.weight"].shape == (10, 12)
    assert carry_out(prepared, RunDirectory(tmp_path / "run")).proofs[0].exact
    with pytest.raises(CheckpointError, match=r"2 of another shape: head\.weight.*--fresh-head True"):
        prepare(dataclasses.replace(recipe, fresh_head=False))


def test_what_is_wrong_with_the_weights_is_said_and_not_the_size_that_was_tried_first() -> None:
    timm = pytest.importorskip("timm")
    shape = data.Shape(3, 32, 32, 10)
    deit = timm.create_model("deit_tiny_distilled_patch16_224", depth=1).state_dict()
    weights = Weights(Path("deit.pth"), deit, "0" * 64)
    with pytest.raises(SpecError, match=r"found 2 \('head', 'head_dist'\); leave --fresh-head out"):
        parents.build("timm:deit_tiny_distilled_patch16_224", shape, {"depth": 1}, weights, fresh_head=True)
    with pytest.raises(SpecError, match="it refuses them: Input height"):
        parents.build(VIT, shape, {"depth": 1, "img_size": 64}, weights)
    said: list[str] = []
    vit = timm.create_model("vit_tiny_patch16_224", depth=1).state_dict()
    weights = Weights(Path("vit.pth"), vit, "0" * 64)
    made = parents.build(VIT, shape, {"depth": 1}, weights, fresh_head=True, say=said.append)
    assert made(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert len(said) == 2 and "from 14x14 patches to 2x2" in said[0]
