"""What a recipe says of its data: random changes and frames, refused where they cannot be, and kept with the network."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import polarspike as ps
from polarspike import cli, data
from polarspike.cli.experiments import Train, named_recipe
from polarspike.data import Augmentation
from polarspike.data.events import FrameSpec
from polarspike.errors import CheckpointError, DataError, InputError, MissingExtraError, RunError, SpecError
from polarspike.experiments import Recipe, experiment
from polarspike.experiments.experiment import carry_out, prepare
from polarspike.experiments.rehearsal import rehearse
from polarspike.runs import RunDirectory
from polarspike.sources import weights
from polarspike.specs import QuantSpec
from polarspike.training_spec import TrainSpec

MIXED = Augmentation(erasing=0.5, mixup=0.8, cutmix=1.0)
SMALL = Recipe(
    data="digits",
    model="mlp",
    width=16,
    batch_size=256,
    ann=TrainSpec(epochs=1, warmup_epochs=0.0, label_smoothing=0.1),
    quant=QuantSpec(0, 3),
    qann=TrainSpec(epochs=1, learning_rate=0.02, warmup_epochs=0.0, distillation=0.5),
    timesteps=(1,),
    augmentation=MIXED,
    calibration_images=64,
    proof_images=32,
)


def test_flags_name_changes_and_frames() -> None:
    flags = shlex.split(
        "--data n-mnist --augmentation.randaugment 9 --augmentation.mixup 0.8 --frames.bins 4 --frames.by count"
    )
    parsed = cli.app.parse(["train", *flags])
    assert isinstance(parsed, Train)
    assert parsed.values.augmentation == Augmentation(randaugment=9, mixup=0.8)
    assert parsed.values.frames == FrameSpec(bins=4, by="count") == parsed.values.asked_frames
    assert Recipe.from_dict(json.loads(json.dumps(parsed.values.to_dict()))) == parsed.values
    older = {key: value for key, value in parsed.values.to_dict().items() if key not in ("augmentation", "frames")}
    assert Recipe.from_dict(older).augmentation == Augmentation()  # a run of an older release goes on


def test_a_run_that_recorded_a_former_default_goes_on(tmp_path: Path) -> None:
    older = {**SMALL.to_dict(), "through_time": TrainSpec().to_dict(), "leak": 0.9, "learned_leak": True}
    assert Recipe.from_dict(older) == SMALL and "leak" not in SMALL.to_dict()
    RunDirectory(tmp_path / "run").configure(recipe=older)
    RunDirectory(tmp_path / "run", resume=True).configure(recipe=SMALL)
    with pytest.raises(SpecError, match=r"expected 'through-time' with leak=0\.5"):
        Recipe.from_dict({**older, "leak": 0.5})
    learning = dataclasses.replace(SMALL, data="n-mnist", reading="through-time", leak=0.9)
    assert Recipe.from_dict(learning.to_dict()) == learning  # what was really trained from there stays


@pytest.mark.parametrize("wrong", [{"batch_size": 1.5}, {"batch_size": "x"}, {"workers": True}, {"proof_images": 0}])
def test_numbers_of_a_recipe_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError, match=f"Recipe.{next(iter(wrong))}: expected an integer"):
        dataclasses.replace(SMALL, **wrong)  # type: ignore[arg-type]


def test_further_changes_are_added_to_the_usual_ones_or_replace_them() -> None:
    usual = data.load("digits").augmentation
    assert usual == Augmentation(shift=1)
    assert prepare(SMALL).dataset.augmentation == dataclasses.replace(MIXED, shift=1)
    assert prepare(dataclasses.replace(SMALL, augment=False)).dataset.augmentation == MIXED
    other = dataclasses.replace(SMALL, augmentation=Augmentation(shift=2))
    assert prepare(other).dataset.augmentation == Augmentation(shift=2)


def test_mixed_labels_reach_both_networks_their_teacher_and_the_file(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    prepared = prepare(SMALL)
    train, validate, test, _ = experiment._loaders(prepared.dataset, SMALL, "cpu")
    _, shares = next(iter(train))
    assert validate is None
    assert shares.shape == (256, 10) and ((shares > 0).sum(1) == 2).any() and next(iter(test))[1].ndim == 1
    outcome = carry_out(prepared, RunDirectory(tmp_path / "run"))
    assert outcome.proofs[0].exact
    notes = ps.load(tmp_path / "run" / "qann.safetensors").notes  # type: ignore[union-attr]
    assert Augmentation.from_dict(notes["augmentation"]) == dataclasses.replace(MIXED, shift=1)
    assert "frames" not in notes
    asked = json.loads((tmp_path / "run" / "config.json").read_text())["specs"]["recipe"]
    assert asked["augmentation"]["cutmix"] == 1.0


def test_what_cannot_apply_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    framed = dataclasses.replace(SMALL, frames=FrameSpec(bins=3))
    for start in (prepare, rehearse):
        with pytest.raises(
            SpecError, match=r"frames: expected an event data set, got 'digits'.* one of: cifar10-dvs, "
        ):
            start(framed)
    with pytest.raises(InputError, match=r"Augmentation\.shift: expected fewer pixels .* got 8 for 8x8"):
        prepare(dataclasses.replace(SMALL, augmentation=Augmentation(shift=8)))
    events = dataclasses.replace(SMALL, data="n-mnist", augmentation=Augmentation(randaugment=9))
    with pytest.raises(InputError, match="randaugment: expected images of 1 or 3 channels, got 20"):
        rehearse(events)
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    for start in (prepare, rehearse):
        with pytest.raises(MissingExtraError, match=r"polarspike\[vision\]"):
            start(SMALL)


@pytest.mark.parametrize("start", [prepare, rehearse])
def test_levels_that_reach_no_site_are_refused_before_any_training(
    start: Callable[[Recipe], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polarspike.experiments.rehearsal._learn", lambda *_: pytest.fail("it has trained"))
    recipe = dataclasses.replace(SMALL, quant=QuantSpec(3, 4, gain="learned"), augmentation=Augmentation())
    with pytest.raises(SpecError, match="gain='learned' reaches no site"):
        start(recipe)


@pytest.mark.parametrize(
    ("channels", "size", "frames", "batch"),
    [
        (1, (8, 8), 1, 256),
        (3, (224, 224), 1, 256),
        (20, (180, 240), 1, 44),
        (2, (34, 34), 10, 25),
        (2, (999, 999), 9, 2),
    ],
)
def test_large_samples_are_evaluated_in_smaller_batches(
    channels: int, size: tuple[int, int], frames: int, batch: int
) -> None:
    found: Any = SimpleNamespace(in_channels=channels, image_size=size)
    assert experiment.evaluation_batch(found, frames) == batch


def test_the_shape_of_events_follows_their_frames() -> None:
    assert data.shape_of("n-mnist", FrameSpec(bins=3, width=17)) == data.Shape(6, 34, 17, 10)
    assert data.shape_of("n-mnist") == data.Shape(20, 34, 34, 10)


def test_a_rehearsal_steps_on_changed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    said: list[str] = []
    monkeypatch.setattr("polarspike.experiments.rehearsal._learn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # before the long part
        rehearse(SMALL, say=said.append)
    assert "the float network has made a step in fp32 on changed images" in said[-1] and torch.isfinite(
        torch.tensor(float(said[-1].split()[-1]))
    )


def test_a_data_set_in_place_of_a_recipe_names_its_recipes() -> None:
    for name in ("cifar10", "cifar-10", "CIFAR_10"):
        with pytest.raises(
            SpecError, match=rf"'{name}' is a data set: expected one of its recipes: cifar10_vgg16, cifar10_"
        ):
            named_recipe(name)
    with pytest.raises(SpecError, match=r"one of its recipes: demo; or give --data mnist-5k"):
        named_recipe("mnist5k")
    with pytest.raises(
        SpecError, match="'digits' is a data set: expected a recipe's name, and none is of this data set"
    ):
        named_recipe("digits")
    with pytest.raises(SpecError, match="unknown recipe 'cifar11'"):
        named_recipe("cifar11")


# --- networks of other packages, and trained weights ----------------------------------------------------------------------


def trained_weights(place: Path) -> Recipe:
    """A recipe that starts from a file of weights, whose network was trained elsewhere."""
    model = experiment.build_model(data.load("digits"), SMALL)
    path = place / "trained.pth"
    ps.fit(model, data.load("digits").training(64), TrainSpec(epochs=2, warmup_epochs=0.0), progress=False)
    torch.save({"state_dict": model.state_dict()}, path)
    return dataclasses.replace(SMALL, weights=str(path), augmentation=Augmentation())


def test_trained_weights_take_the_place_of_the_first_stage(tmp_path: Path) -> None:
    recipe = trained_weights(tmp_path)
    said: list[str] = []
    prepared = prepare(recipe)
    before = ps.evaluate(prepared.ann, prepared.dataset.evaluation(100)).correct
    place = tmp_path / "run"
    outcome = carry_out(prepared, RunDirectory(place), say=said.append)
    assert said[0] == "take the ANN as it is: mlp with the weights of trained.pth" and not (place / "ann").exists()
    assert outcome.proofs[0].exact and before[1] > 200
    notes = ps.load(place / "snn.safetensors").notes  # type: ignore[union-attr]
    assert notes["weights"]["file"] == "trained.pth" and len(notes["weights"]["sha256"]) == 64
    torch.save(experiment.build_model(data.load("digits"), SMALL).state_dict(), tmp_path / "trained.pth")
    with pytest.raises(RunError, match="weights was '"):  # the run goes on from no other weights
        carry_out(prepare(recipe), RunDirectory(place, resume=True))


@pytest.mark.parametrize("start", [prepare, rehearse])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, start: Callable[[Recipe], object]) -> None:
    recipe = trained_weights(tmp_path)
    with pytest.raises(CheckpointError, match="does not fit mlp"):
        start(dataclasses.replace(recipe, width=17))
    with pytest.raises(CheckpointError, match="expected a file of weights, found nothing"):
        start(dataclasses.replace(recipe, weights=str(tmp_path / "none.pth")))


def test_a_file_of_weights_is_read_and_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = trained_weights(tmp_path)
    seen: list[str] = []
    for name in ("read_weights", "sha256"):
        original = getattr(weights, name)
        monkeypatch.setattr(weights, name, lambda path, *rest, o=original, n=name: seen.append(n) or o(path, *rest))  # type: ignore[func-returns-value]
    carry_out(prepare(recipe), RunDirectory(tmp_path / "run"))
    assert seen == ["read_weights", "sha256"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    notes = ps.load(tmp_path / "run" / "qann.safetensors").notes  # type: ignore[union-attr]
    assert config["specs"]["weights"] == notes["weights"]["sha256"] == weights.sha256(tmp_path / "trained.pth")
    # A network that is not of its model's usual width fits in a rehearsal, too.
    monkeypatch.setattr("polarspike.experiments.rehearsal._learn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        rehearse(recipe)


def test_a_converted_network_is_no_file_of_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ps.models.create("mlp", num_classes=10, in_channels=1, image_size=(8, 8), width=16)
    qann = ps.quantize(model, QuantSpec(), example=torch.rand(2, 1, 8, 8))
    ps.calibrate(qann, [torch.rand(8, 1, 8, 8)])
    for network, kind in ((qann, "quantized"), (ps.convert(qann), "spiking")):
        path = tmp_path / f"{kind}.safetensors"
        ps.save(network, path)
        for start in (prepare, rehearse):
            with pytest.raises(CheckpointError, match=rf"float network, the file holds a {kind} network of polarspike"):
                start(dataclasses.replace(SMALL, weights=str(path)))


def test_a_run_goes_on_with_another_number_of_loading_processes(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALL, augmentation=Augmentation(cutout=2), batch_size=500)
    whole = carry_out(prepare(recipe), RunDirectory(tmp_path / "whole"))
    run = RunDirectory(tmp_path / "run")

    def stop(message: str) -> None:
        if message.startswith("fine-tune"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(prepare(recipe), run, say=stop)
    more = dataclasses.replace(recipe, workers=1)
    resumed = carry_out(prepare(more), RunDirectory(tmp_path / "run", resume=True))
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert json.loads((tmp_path / "run" / "config.json").read_text())["specs"]["recipe"]["workers"] == 1
    with pytest.raises(RunError, match=r"recipe\.batch_size was 500 and is 400 now"):
        carry_out(prepare(dataclasses.replace(more, batch_size=400)), RunDirectory(tmp_path / "run", resume=True))


def test_a_validation_part_is_cut_from_the_training_part_and_asked_after_every_epoch(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SMALL, validation=0.2, augmentation=Augmentation())
    prepared, usual = prepare(recipe), prepare(dataclasses.replace(recipe, validation=0.0)).dataset
    found, other = prepared.dataset, prepare(dataclasses.replace(recipe, seed=5)).dataset
    assert [found.count(part) for part in ("train", "validation", "test")] == [1151, 287, 359]
    assert torch.equal(found.part("validation").images, other.part("validation").images)  # type: ignore[union-attr]
    assert torch.equal(found.test.images, usual.test.images) and usual.count("train") == 1151 + 287  # type: ignore[union-attr]
    whole = carry_out(prepared, RunDirectory(tmp_path / "whole"))
    logs = {
        stage: RunDirectory(tmp_path / "whole" / stage, resume=True).records() for stage in ("ann", "qann", "control")
    }
    for stage, network in (("qann", ps.load(tmp_path / "whole" / "qann.safetensors")), ("control", prepared.ann)):
        assert isinstance(network, nn.Module)
        right = ps.evaluate(network, found.evaluation(100, "validation")).accuracy[1]
        assert [record["validation_accuracy"] for record in logs[stage]] == [right], stage
    assert len(logs["ann"]) == 1 and 0 < logs["ann"][0]["validation_accuracy"] < 1

    def stop(message: str) -> None:
        if message.startswith("continue the ANN"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(prepare(recipe), RunDirectory(tmp_path / "run"), say=stop)
    resumed = carry_out(prepare(recipe), RunDirectory(tmp_path / "run", resume=True))
    assert resumed.to_dict() == whole.to_dict()
    with pytest.raises(RunError, match=r"recipe\.validation was 0\.2 and is 0\.3 now"):
        more = dataclasses.replace(recipe, validation=0.3)
        carry_out(prepare(more), RunDirectory(tmp_path / "run", resume=True))


def test_without_validation_a_recipe_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dataclasses.replace(SMALL, validation=0.25, augmentation=Augmentation())
    assert "validation" not in SMALL.to_dict() and Recipe.from_dict(SMALL.to_dict()) == SMALL
    assert Recipe.from_dict(json.loads(json.dumps(asked.to_dict()))) == asked
    parsed = cli.app.parse(["train", "--data", "digits", "--validation", "0.25"])
    assert isinstance(parsed, Train) and parsed.values.validation == 0.25
    for wrong in (-0.1, 1.0, True, float("nan"), "x"):
        with pytest.raises(SpecError, match=r"Recipe\.validation: expected a share in \[0, 1\), got"):
            dataclasses.replace(SMALL, validation=wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"a fraction of 0\.001 takes 0 of the .* samples of class 0"):
        prepare(dataclasses.replace(SMALL, validation=0.001))
    with pytest.raises(SpecError, match="batch_size: expected at most 143"):
        prepare(dataclasses.replace(SMALL, validation=0.9))
    said: list[str] = []
    monkeypatch.setattr("polarspike.experiments.rehearsal._learn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        rehearse(asked, say=said.append)
    assert "the float network has made a step in fp32, validated: loss" in said[-1]


def test_a_network_of_timm_is_a_parent_with_its_own_scaling(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    options: dict[str, int | str] = {"depth": 1, "embed_dim": 12, "num_heads": 2, "patch_size": 4}
    built = timm.create_model("vit_tiny_patch16_224", num_classes=10, in_chans=1, img_size=8, **options)
    torch.save(built.state_dict(), tmp_path / "vit.pth")
    recipe = dataclasses.replace(
        SMALL, model="timm:vit_tiny_patch16_224", width=None, options=options, weights=str(tmp_path / "vit.pth"),
        quant=QuantSpec(7, 8), augmentation=Augmentation(),
    )  # fmt: skip
    prepared = prepare(recipe)
    assert prepared.dataset.normalization == data.Normalization((0.5,), (0.5,))  # what timm trained it with
    x, _ = next(iter(prepared.dataset.evaluation(4)))
    torch.testing.assert_close(prepared.ann(x), built.eval()(x))
    outcome = carry_out(prepared, RunDirectory(tmp_path / "run"))
    assert outcome.proofs[0].exact
    fresh = prepare(dataclasses.replace(recipe, weights=None))
    assert fresh.dataset.normalization == data.load("digits").normalization


def test_what_other_packages_cannot_do_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(SpecError, match=r"Recipe\.width: expected None for timm:resnet18, got 16"):
        dataclasses.replace(SMALL, model="timm:resnet18")
    plain = dataclasses.replace(SMALL, width=None)
    with pytest.raises(SpecError, match="torchvision:resnet18: expected images of 3 channels, got 1"):
        prepare(dataclasses.replace(plain, model="torchvision:resnet18"))
    with pytest.raises(SpecError, match="unknown model 'timn:vit'"):
        prepare(dataclasses.replace(plain, model="timn:vit"))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"polarspike\[vision\]"):
        prepare(dataclasses.replace(plain, model="timm:vit_small_patch16_224"))
