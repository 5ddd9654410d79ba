"""Every network of the registry: shapes, sizes, starting weights, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.fx
from torch import Tensor, nn

from polarspike import models
from polarspike.errors import SpecError

NAMES = models.names()
ANY_SIZE = [name for name in NAMES if not models.describe(name).needs_image_size]


def narrow(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return models.create(name, **{"num_classes": 5, "in_channels": 2, "width": 4, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_scores_have_one_number_per_class(name: str) -> None:
    scores = narrow(name).eval()(torch.randn(models.describe(name).example_shape(2, batch=3)))
    assert scores.shape == (3, 5)
    assert scores.isfinite().all()


@pytest.mark.parametrize("name", ANY_SIZE)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 5), (28, 28), (33, 20)])
def test_any_input_size_passes(name: str, size: tuple[int, int]) -> None:
    assert narrow(name).eval()(torch.randn(1, 2, *size)).shape == (1, 5)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 33)])
def test_the_imagenet_stem_passes_any_size(name: str, size: tuple[int, int]) -> None:
    assert narrow(name, stem="imagenet").eval()(torch.randn(1, 2, *size)).shape == (1, 5)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient_and_a_few_steps_lower_the_loss(name: str) -> None:
    net = narrow(name)
    images, labels = torch.randn(models.describe(name).example_shape(2, batch=20)), torch.arange(20) % 5
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        for path, parameter in net.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, path
        optimizer.step()
    # A Transformer of four numbers a token, without batch norm, learns more slowly.
    assert losses[-1] < (0.95 if name == "vit" else 0.8) * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    one, two = narrow(name).state_dict(), narrow(name).state_dict()
    assert list(one) == list(two)
    assert all(torch.equal(one[key], two[key]) for key in one)
    torch.manual_seed(1)
    other = models.create(name, num_classes=5, in_channels=2, width=4).state_dict()
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", NAMES)
def test_no_batch_norm_starts_silent_and_no_norm_is_preceded_by_a_bias(name: str) -> None:
    for path, module in narrow(name).named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), path
        if isinstance(module, nn.Conv2d):
            assert module.bias is None, path


def test_convolutions_start_with_the_kaiming_spread_over_outputs() -> None:
    torch.manual_seed(0)
    net = models.create("vgg16", num_classes=10, in_channels=3, width=32)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            expected = math.sqrt(2 / (module.out_channels * 9))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_that_torch_traces_computes_the_same(name: str) -> None:
    net = narrow(name).eval()
    traced = torch.fx.symbolic_trace(net)
    for batch in (1, 3):
        images = torch.randn(models.describe(name).example_shape(2, batch))
        assert torch.equal(traced(images), net(images))


@pytest.mark.parametrize("name", NAMES)
def test_no_activation_object_is_used_twice(name: str) -> None:
    net = narrow(name)
    calls: dict[str, int] = {}

    def count(path: str) -> None:
        calls[path] = calls.get(path, 0) + 1

    for path, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, nn.ReLU | nn.GELU):
            module.register_forward_hook(lambda *_args, path=path: count(path))
    net.eval()(torch.randn(models.describe(name).example_shape(2)))
    assert calls and set(calls.values()) == {1}


@pytest.mark.parametrize(
    ("name", "convolutions", "linears", "parameters"),
    [
        # 14,728,266 is the count known for convolutions with biases: 2*(64 + 128) + 3*256 + 6*512 of them are not here.
        ("vgg16", 13, 1, 14_728_266 - 4_224),
        # 11,173,962 and 21,282,122 are the counts known for the three-channel CIFAR versions with ten classes.
        ("resnet18", 17 + 3, 1, 11_173_962),
        ("resnet34", 33 + 3, 1, 21_282_122),
        # 269,722 with parameter-free shortcuts; two projections add 16*32 + 32*64 weights and 2*(32 + 64) norm values.
        ("resnet20", 19 + 2, 1, 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)),
    ],
)
def test_full_width_networks_have_the_known_layers_and_parameters(
    name: str, convolutions: int, linears: int, parameters: int
) -> None:
    net = models.create(name, num_classes=10, in_channels=3)
    kinds = [type(module) for module in net.modules()]
    assert kinds.count(nn.Conv2d) == convolutions
    assert kinds.count(nn.Linear) == linears
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


def test_the_mlp_takes_the_image_size_and_depth() -> None:
    net = narrow("mlp", image_size=(3, 5), depth=3)
    assert net.eval()(torch.randn(2, 2, 3, 5)).shape == (2, 5)
    assert sum(isinstance(module, nn.ReLU) for module in net.modules()) == 3
    with pytest.raises(SpecError, match="expected image_size height to be an integer of at least 1, got 0"):
        narrow("mlp", image_size=(0, 5))
    with pytest.raises(SpecError, match=r"expected image_size to be one integer or \(H, W\), got \(1, 2, 3\)"):
        narrow("mlp", image_size=(1, 2, 3))


def test_an_unknown_stem_is_refused() -> None:
    with pytest.raises(SpecError, match="expected stem to be 'cifar' or 'imagenet', got 'mnist'"):
        narrow("resnet18", stem="mnist")


def test_the_stems_reduce_the_resolution_as_stated() -> None:
    images = torch.randn(1, 2, 32, 32)
    for stem, size in (("cifar", 32), ("imagenet", 8)):
        features: Tensor = narrow("resnet18", stem=stem).get_submodule("stem").eval()(images)
        assert features.shape == (1, 4, size, size)


def test_a_block_without_change_of_shape_has_the_identity_as_shortcut() -> None:
    block = models.resnet.BasicBlock(4, 4, stride=1).eval()
    assert isinstance(block.shortcut, nn.Identity)
    with torch.no_grad():
        block.norm2.weight.zero_()
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x.relu())
