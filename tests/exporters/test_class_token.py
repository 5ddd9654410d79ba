"""Learned constants beside signals, a class token above all: whole numbers hold them exactly, at every batch size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import integer
from polarspike.errors import ExportError
from polarspike.exporters.integer import integer_network
from polarspike.integer import IntegerNetwork
from tests.exporters.test_integer import IMAGES, Net, apart, spiking, wrong

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SPEC = ps.QuantSpec(7, 8)
Join = Callable[[Tensor, Tensor], Tensor]


class Block(nn.Module):
    """Attention as timm writes it: one layer for q, k and v, a layout with the batch second, and unbind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(self.before(x)).reshape(batch, count, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1) * (width // 2) ** -0.5).softmax(-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(batch, count, width))
        return x + self.mlp(self.between(x))  # type: ignore[no-any-return]


class Vision(nn.Module):
    """Patches, learned tokens joined to them by ``join``, positions or none, one block, and a head for each token.

    Args:
        tokens: how many.
        join: of the tokens and the patches.
        where: the index of the first token that a head reads.
        positions: whether they are added.
    """

    def __init__(self, tokens: int, join: Join, where: int = 0, *, positions: bool = True, width: int = 16) -> None:
        super().__init__()
        self.join, self.where, self.tokens = join, where, nn.Parameter(torch.randn(1, tokens, width))
        self.positions = nn.Parameter(torch.randn(1, 16 + tokens, width)) if positions else None
        self.patches, self.block, self.norm = nn.Conv2d(3, width, 4, 4), Block(width), nn.LayerNorm(width)
        self.heads = nn.ModuleList([nn.Linear(width, 4) for _ in range(tokens)])

    def forward(self, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.join(self.tokens.expand(x.shape[0], -1, -1), x)
        x = self.norm(self.block(x if self.positions is None else x + self.positions))
        return [head(x[:, self.where + index]) for index, head in enumerate(self.heads)]


def front(tokens: Tensor, x: Tensor) -> Tensor:
    return torch.cat([tokens, x], 1)


def end(tokens: Tensor, x: Tensor) -> Tensor:
    return torch.cat([x, tokens], 1)


def around(tokens: Tensor, x: Tensor) -> Tensor:
    first, second = tokens.chunk(2, 1)
    return torch.cat([first, x, second], 1)


def of_torchvision() -> nn.Module:
    models = pytest.importorskip("torchvision").models
    model: nn.Module = models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=4
    )
    nn.init.normal_(model.class_token)  # type: ignore[arg-type]
    nn.init.normal_(model.heads.head.weight)  # type: ignore[arg-type, union-attr]
    return model


def of_timm() -> nn.Module:
    timm = pytest.importorskip("timm")
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 4}
    return timm.models.VisionTransformer(**options, reg_tokens=2, init_values=0.5)  # type: ignore[no-any-return]


#: A network, and the places of its constants among the tokens.
VISION: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "torchvision": (of_torchvision, [0]),
    "timm": (of_timm, [0, 1, 2]),
    "two tokens": (lambda: Vision(2, front), [0, 1]),
    "at the end, no positions": (lambda: Vision(1, end, -1, positions=False), [16]),
    "around": (lambda: Vision(2, around, -1), [0, 17]),
}


def images(count: int = 12) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def made_of(model: nn.Module, x: Tensor, spec: ps.QuantSpec = SPEC) -> tuple[ps.SpikingNetwork, IntegerNetwork]:
    snn = spiking(model, x, spec)
    return snn, integer_network(snn, x[:1], [x])


@pytest.mark.parametrize(
    "name", ["around", *(pytest.param(name, marks=pytest.mark.slow) for name in VISION if name != "around")]
)
def test_transformers_with_learned_tokens(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, places = VISION[name]
    x = images()
    snn, made = made_of(build(), x)
    assert "MatMul" not in made.float_operators() and "Conv" not in made.float_operators()
    integer.save(made, tmp_path / "net")
    again, source = integer.load(tmp_path / "net"), made.inputs[0][0]
    everything = dict(integer.trace(again, {source: x.numpy()}))
    fired: dict[str, Any] = {}
    with torch.no_grad(), snn.observe(lambda site, t, spikes: fired.update({site: spikes.numpy()})):
        snn(x)
    different = {site: everything[value] != fired[site] for site, value in made.sites.items()}
    # Nothing of a constant is rounded: in front of all attention its codes are those of the spiking network.
    first = next(iter(different.values()))
    assert not first[:, places].any() and first.any()
    assert sum(map(np.sum, different.values())) < 0.12 * sum(map(np.size, different.values()))
    for batch in (1, 3, 8):
        given = {source: x[:batch].numpy()}
        assert wrong(made, given) == 0
        for value, codes in integer.trace(again, given):
            if value in made.sites.values():
                assert np.array_equal(codes, everything[value][:batch])


@pytest.mark.slow
@pytest.mark.parametrize("format_name", ["onnx-int8", "integer", "onnx-float", "torch-export"])
def test_files_answer_at_every_batch_size(format_name: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = images()
    snn = spiking(Vision(2, front), x, SPEC)
    report = ps.export(snn, tmp_path / "net", format_name, x[:4], [x[:1], x[:3], x[:8]])
    assert report.samples == 12 and report.codes_wrong == 0
    if format_name in ("onnx-float", "torch-export"):
        assert report.largest < 1e-5 and (report.exact or format_name == "onnx-float")


PLANES = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij"))


class Pictures(Net):
    """Codes or pixels beside constant planes, as CoordConv has them."""

    def forward(self, x: Tensor) -> Tensor:
        planes = PLANES.expand(x.shape[0], -1, -1, -1)
        if self.one.in_channels > 2:
            x = torch.cat([x, planes], 1)
        x = self.what(torch.relu(self.one(x)))
        if self.two.in_channels > 6:
            x = torch.cat([planes, x], 1)
        return self.head(torch.relu(self.two(x)).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("inputs", "channels", "spec"),
    [
        (4, 6, ps.QuantSpec(0, 7)),
        (4, 6, ps.QuantSpec(3, 4, signed="all", inputs=True)),
        (2, 8, ps.QuantSpec(0, 7)),
        (2, 8, ps.QuantSpec(0, 7, granularity="channel")),
    ],
    ids=["pixels", "pixels with a site", "codes", "codes with steps per channel"],
)
def test_planes_beside_channels(inputs: int, channels: int, spec: ps.QuantSpec) -> None:
    torch.manual_seed(0)
    x = torch.randn(IMAGES)
    model = Pictures(lambda x: x, channels)
    model.one = nn.Conv2d(inputs, 6, 3, padding=1)
    snn, made = made_of(model, x, spec)
    assert apart(snn, made, x) < 0.12
    for batch in (1, 3):
        assert wrong(made, {made.inputs[0][0]: x[:batch].numpy()}) == 0


PLANE, LARGEST = torch.ones(1, 1, 8, 8), torch.finfo(torch.float32).max


@pytest.mark.parametrize(
    "plane",
    [
        lambda batch: torch.arange(batch).float().reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8),
        lambda batch: PLANE.expand(batch, -1, -1, -1) * batch,
        lambda batch: PLANE.expand(batch, -1, -1, -1).sum(0, keepdim=True).expand(batch, -1, -1, -1),
        # From here on, batches of one and of two have the same values.
        lambda batch: PLANE.expand(batch, -1, -1, -1) * (batch // 3),
        lambda batch: torch.ones(batch, 1, 8, 8) * ((batch + 5) // 4),
        lambda batch: PLANE.expand(batch, -1, -1, -1) * ((batch - 1) * (batch - 2)),
        lambda batch: torch.full((batch, 1, 8, 8), batch // 3),
        lambda batch: torch.ones(batch, 8).tril(-3).reshape(-1, 1, 1, 8) * PLANE,
        lambda batch: torch.where(torch.full((batch, 1, 1, 1), LARGEST).sum(0) == LARGEST, PLANE, -PLANE).expand(
            batch, -1, -1, -1
        ),
    ],
    ids=[
        "numbers",
        "times the size",
        "a sum over the batch",
        "times a third",
        "times a quarter",
        "times a polynomial",
        "full of a third",
        "rows from the fourth",
        "a sum that overflows",
    ],
)
def test_a_constant_that_counts_the_samples_is_refused(plane: Callable[[int], Tensor]) -> None:
    x = torch.randn(IMAGES)
    model = Net(lambda x: torch.cat([x[:, 1:], plane(x.shape[0])], 1))
    with pytest.raises(ExportError, match="values depend on the size of the batch"):
        made_of(model, x, ps.QuantSpec(7, 7))


@pytest.mark.parametrize("what", [lambda x: x * (x.shape[0] // 3), lambda x: x.clamp(0, x.shape[0])])
def test_a_signal_that_meets_the_size_of_the_batch_is_refused(what: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ExportError, match="values that depend on the size of the batch"):
        made_of(Net(what), torch.randn(IMAGES), ps.QuantSpec(7, 7))


def test_a_constant_may_be_laid_out_with_the_batch() -> None:
    def planes(batch: int) -> Tensor:
        several = torch.cat([PLANE, -PLANE], 1).expand(batch, -1, -1, -1).reshape(batch * 2, 8, 8)
        several = torch.cat([several.reshape(batch, -1, 8, 8), torch.zeros(batch, 1, 8, 8)], 1)
        unknown = (PLANE * torch.nan).repeat(batch, 1, 1, 1)
        return torch.cat([several, torch.where(unknown == unknown, unknown, PLANE)], 1)

    x = torch.randn(IMAGES)
    # That x is moved, too, must not fix the size of its batch.
    model = Net(lambda x: torch.cat([x.transpose(0, 1).transpose(0, 1), planes(x.shape[0])], 1), 10)
    snn, made = made_of(model, x, ps.QuantSpec(0, 7))
    assert apart(snn, made, x) < 0.12 and wrong(made, {made.inputs[0][0]: x[:3].numpy()}) == 0


def test_tokens_in_front_of_the_batch_are_refused() -> None:
    class Sequence(nn.Module):
        """Tokens first, then the batch."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.token, self.head = nn.Linear(6, 8), nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.token.expand(-1, x.shape[0], -1), self.one(x).transpose(0, 1)])
            return self.head(torch.relu(x).mean(0))  # type: ignore[no-any-return]

    with pytest.raises(ExportError, match="first dimension is no longer the batch; keep the batch in front"):
        made_of(Sequence(), torch.randn(4, 5, 6))


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: torch.relu(x.permute(2, 0, 1, 3))[0],
        lambda x: x.permute(2, 0, 1, 3).flatten(0, 1).unflatten(0, (3, -1))[0],
        lambda x: x.permute(2, 3, 0, 1)[0].transpose(0, 1),
        # The dimension in front is none of the batch, and what is said of it must not be.
        lambda x: x.permute(2, 0, 1, 3)[0:1].squeeze(0),
        lambda x: x.permute(2, 0, 1, 3).mean(0),
    ],
    ids=["an operator", "a view", "a part without the batch in front", "a slice", "a mean"],
)
def test_what_is_done_to_a_layout_without_the_batch_in_front_is_refused(layout: Callable[[Tensor], Tensor]) -> None:
    class Layout(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(6, 12), nn.LazyLinear(7), nn.Linear(7, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = layout(self.one(x).unflatten(2, (3, 4)))
            return self.head(torch.relu(self.two(x)).mean(1))  # type: ignore[no-any-return]

    model, x = Layout(), torch.randn(4, 5, 6)
    model(x)
    with pytest.raises(ExportError, match=r"no longer the batch|makes a batch of something else"):
        made_of(model, x)


def test_a_layout_whose_batch_comes_back_in_front() -> None:
    x = torch.randn(IMAGES)
    snn, made = made_of(Net(lambda x: x.transpose(0, 1).permute(1, 0, 3, 2)), x, ps.QuantSpec(0, 3))
    assert apart(snn, made, x) < 0.12 and wrong(made, {made.inputs[0][0]: x.numpy()}) == 0


def test_an_argument_that_is_a_plain_value() -> None:
    class Switched(Net):
        def forward(self, x: Tensor, doubled: bool = False, scale: float = 3.0) -> Tensor:
            return super().forward(x * 2 * scale if doubled else x)

    x = torch.randn(IMAGES)
    snn, made = made_of(Switched(lambda x: x), x, ps.QuantSpec(0, 3))
    assert [name for name, _ in made.inputs] == ["x"]
    assert apart(snn, made, x) < 0.12 and wrong(made, {"x": x.numpy()}) == 0
