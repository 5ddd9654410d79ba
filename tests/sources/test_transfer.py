"""Weights that a network learns on from: which layer is its last, and positions of another grid of patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polarspike import sources
from polarspike.errors import CheckpointError, SpecError
from polarspike.sources import Weights
from polarspike.sources.transfer import head_of, resample_positions, take_over
from tests.foreign import Net


class Positioned(Net):
    """With numbers for every class at its root, or positions."""

    def __init__(self, classes: int = 5, **sizes: int) -> None:
        super().__init__(3)
        for name, size in {"scores": classes, **sizes}.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(size)))


def held(state: dict[str, Tensor]) -> Weights:
    return Weights(Path("w.pth"), state, "0" * 64)


def another() -> nn.Module:
    return Net(6)


# --- the last layer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "layer"),
    [
        ("torchvision:squeezenet1_1", "classifier.1"),  # a convolution, which is not the last module
        ("torchvision:mobilenet_v2", "classifier.1"),
        ("timm:convnext_atto", "head.fc"),
        ("timm:vit_tiny_patch16_224", "head"),
    ],
)
def test_the_last_layer_is_the_one_that_follows_the_classes(reference: str, layer: str) -> None:
    pytest.importorskip(reference.partition(":")[0])
    # As many classes as the layer has inputs, or channels elsewhere: shapes alone would not tell.
    ten, more = (sources.build(reference, random_weights=True, options={"num_classes": n}) for n in (192, 193))
    assert head_of(ten, more, reference) == (f"{layer}.weight", f"{layer}.bias")


def test_all_of_the_last_layer_is_its_own_and_nothing_beside_it() -> None:
    assert head_of(Net(5), Net(6), "net") == ("head.weight", "head.bias")
    assert head_of(Positioned(5, other=4), Positioned(6, other=4), "net") == ("scores",)
    normed = [nn.Sequential(Net(4), nn.BatchNorm1d(n), nn.Identity()) for n in (4, 5)]
    assert head_of(*normed, "net")[-1] == "1.num_batches_tracked"  # which has one shape for any number of classes


def test_none_or_several_last_layers_are_refused_by_name() -> None:
    two = [nn.ModuleDict({"first": nn.Linear(4, n), "second": nn.Linear(3, n)}) for n in (5, 6)]
    with pytest.raises(
        SpecError, match=r"net: expected one layer whose .* found 2 \('first', 'second'\); leave --fresh-head"
    ):
        head_of(*two, "net")
    with pytest.raises(SpecError, match="found none; leave --fresh-head out"):
        head_of(Net(5), Net(5), "net")


# --- what is taken over -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"head.weight": torch.ones(9, 4), "head.bias": torch.ones(9)}, "of another shape in the file"),
        ({"head.weight": None, "head.bias": None}, "missing in the file"),
        ({"head.weight": torch.ones(9, 4)}, "of another shape in the file"),  # its bias belongs to other scores
        ({}, "those of the file would fit, and are left out"),
    ],
)
def test_a_fresh_head_keeps_its_own_values_and_takes_all_others(change: dict[str, Tensor | None], why: str) -> None:
    file, model, said = Net(5).state_dict(), Net(5), []
    state = {name: value for name, value in {**file, **change}.items() if value is not None}
    own = {name: value.clone() for name, value in model.state_dict().items()}
    wrapped = {f"module.{name}": value for name, value in state.items()}
    assert take_over(model, held(wrapped), "net", another, fresh_head=True, say=said.append) is model
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name] if name.startswith("head.") else file[name]), name
    assert said == [
        "weights: the prefix 'module.' is left out of every name",
        f"weights: a fresh head, as asked for: head.weight, head.bias ({why}); all others are those of w.pth",
    ]


def test_everything_but_the_head_has_to_fit() -> None:
    for change, fault in (
        ({"conv.weight": torch.zeros(4, 1, 3, 3)}, r"1 of another shape: conv\.weight \(model"),
        ({"head.scale": torch.zeros(5)}, r"1 unexpected: head\.scale"),
        ({"aux.weight": torch.zeros(5)}, r"1 unexpected: aux\.weight"),
    ):
        state = {**Net(9).state_dict(), **change}
        model = Net(5)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(CheckpointError, match=f"w.pth: does not fit net, .* {fault}") as refusal:
            take_over(model, held(state), "net", another, fresh_head=True)
        assert "fresh head" not in str(refusal.value) and "head.weight" not in str(refusal.value)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_head_of_another_shape_names_the_way_out_where_it_is_one() -> None:
    repair = r"\(--fresh-head True, Recipe\.fresh_head\): head\.weight, head\.bias start afresh"
    state = Net(9).state_dict()
    with pytest.raises(CheckpointError, match=f"2 of another shape: head.*, with its options; or ask for .*{repair}"):
        take_over(Net(5), held(state), "net", another)
    with pytest.raises(CheckpointError, match=repair):
        take_over(Net(5), held({name: state[name] for name in state if "head" not in name}), "net", another)
    for model, other, wrong in (
        (Net(5), another, {"conv.bias": torch.zeros(3)}),  # which a fresh head does not repair
        (Net(5), lambda: nn.Identity(), {}),  # all follow the classes, or none
    ):
        with pytest.raises(CheckpointError, match="of another shape") as refusal:
            take_over(model, held({**state, **wrong}), "net", other)
        assert "--fresh-head" not in str(refusal.value)


def test_the_network_that_shows_the_last_layer_draws_nothing() -> None:
    torch.manual_seed(3)
    model = Net(5)
    state = torch.get_rng_state()
    take_over(model, held(Net(9).state_dict()), "net", another, fresh_head=True)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    Net(9)  # what the test itself drew
    assert torch.equal(torch.get_rng_state(), after)


# --- positions ----------------------------------------------------------------------------------------------------------


def vit(side: int, **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    small = {"depth": 1, "embed_dim": 8, "num_heads": 2, "patch_size": 4, "num_classes": 5, "img_size": side}
    made: nn.Module = timm.create_model("vit_tiny_patch16_224", **{**small, **options})
    return made


def test_positions_of_another_grid_are_resampled_by_timm() -> None:
    torch.manual_seed(0)
    file, model, said = vit(16), vit(24), []
    state = file.state_dict()
    take_over(model, held(state), "timm:vit_tiny_patch16_224", lambda: vit(24, num_classes=6), say=said.append)
    assert said == ["weights: pos_embed is resampled by timm, from 4x4 patches to 6x6"]
    from timm.models.vision_transformer import checkpoint_filter_fn

    wanted = checkpoint_filter_fn(dict(state), model)  # type: ignore[arg-type]
    for name, value in model.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    assert torch.equal(model.pos_embed[:, 0], state["pos_embed"][:, 0])  # type: ignore[index]  # of the class token


def test_positions_that_fit_or_have_no_square_grid_stay() -> None:
    said: list[str] = []
    for file, model in ((vit(16), vit(16)), (vit(16), nn.Linear(2, 2)), (vit(16), vit(16, pos_embed="none"))):
        state = file.state_dict()
        assert resample_positions(model, state, said.append)["pos_embed"] is state["pos_embed"]
    wide, model = vit(16, img_size=(8, 16)).state_dict(), vit(16)
    with pytest.raises(
        CheckpointError, match=r"pos_embed \(model \(1, 17, 8\), file \(1, 9, 8\)\).*from a square grid"
    ):
        take_over(model, held(wide), "timm:vit_tiny_patch16_224", another)
    assert said == []


def test_positions_of_other_networks_are_refused_with_the_reason() -> None:
    state = Positioned(5, positions=4).state_dict()
    with pytest.raises(CheckpointError, match=r"positions \(model \(9,\), file \(4,\)\).* of timm alone"):
        take_over(Positioned(5, positions=9), held(state), "vit", lambda: Positioned(6, positions=9))
    both = Positioned(7, positions=4).state_dict()
    with pytest.raises(CheckpointError, match=r"of timm alone, .*; or ask for a fresh head \(--fresh-head True"):
        take_over(Positioned(5, positions=9), held(both), "vit", lambda: Positioned(6, positions=9))
