"""Small random networks that the laws are shown on, one for each kind of connection; other tests may import them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import polarspike as ps

Model = TypeVar("Model", bound=nn.Module)


class PlainNet(nn.Module):
    """Convolution, batch norm and ReLU three times, with pooling of either kind in between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv3, self.norm3 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 2 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(x)))
        x = functional.relu(self.norm2(self.conv2(functional.avg_pool2d(x, 2))))
        x = functional.relu(self.norm3(self.conv3(functional.max_pool2d(x, 2))))
        return self.head(x.flatten(1))


class BranchedNet(nn.Module):
    """A residual sum, a concatenation, overlapping max pooling with padding, average pooling, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.side = nn.Conv2d(6, 4, 1)
        self.relu = nn.ReLU(inplace=True)  # one object, used four times
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.norm2(self.two(self.relu(self.norm1(self.one(x)))))
        x = self.pool(self.relu(x + y))
        x = torch.cat([x, self.relu(self.side(x))], dim=1)
        return self.head(self.drop(functional.adaptive_avg_pool2d(x, 1).flatten(1)))


class MLP(nn.Module):
    """Two hidden layers, one of them without batch norm, on flat input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm1, self.act1 = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU()
        self.fc2, self.act2 = nn.Linear(16, 16), nn.ReLU()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act2(self.fc2(self.act1(self.norm1(self.fc1(x))))))


class LeakyNet(nn.Module):
    """LeakyReLU (signed by nature) and ReLU6 (with a ceiling), depthwise convolution, global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.LeakyReLU(0.1)
        self.conv2, self.norm2, self.act2 = nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.ReLU6()
        self.conv3, self.act3 = nn.Conv2d(6, 8, 1), nn.LeakyReLU(0.25)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        x = self.act2(3.0 * self.norm2(self.conv2(x)))
        return self.head(self.act3(self.conv3(x)).mean((2, 3)))


#: name -> class; every law is shown on each of them
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": PlainNet,
    "branched": BranchedNet,
    "mlp": MLP,
    "leaky": LeakyNet,
}

#: the shape of one sample of each network's input
SHAPES: dict[str, tuple[int, ...]] = {"plain": (2, 8, 8), "branched": (2, 8, 8), "mlp": (12,), "leaky": (2, 8, 8)}


def trained_like(model: Model, seed: int = 0) -> Model:
    """Give every batch norm the scales, shifts and statistics that training leaves behind; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)

    def draw(like: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=like.dtype) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.copy_(draw(module.weight, 0.5, 1.5))
                module.bias.copy_(draw(module.bias, -0.4, 0.6))
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(draw(module.running_mean, -0.3, 0.3))
                module.running_var.copy_(draw(module.running_var, 0.2, 0.9))
    return model.eval()


def network(name: str, seed: int = 0) -> nn.Module:
    """A network of this name with random, trained-like weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return trained_like((NETWORKS | CURVED)[name](), seed)


def signal(name: str, batch: int = 6, frames: int = 0, seed: int = 1) -> Tensor:
    """Inputs for a network of this name: (batch, ...), or a sequence (batch, frames, ...)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *((frames,) if frames else ()), *SHAPES[name], generator=generator)


def calibrated(model: nn.Module, spec: ps.QuantSpec, x: Tensor) -> ps.QuantizedNetwork:
    """The quantized network of a model, in evaluation mode, its steps chosen on ``x``."""
    qann = ps.quantize(model, spec, example=x)
    ps.calibrate(qann, [x])
    return qann.eval()


def learned_like(qann: ps.QuantizedNetwork, seed: int = 0) -> ps.QuantizedNetwork:
    """Move every step and learned gain away from its start, as training does; returns its argument."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for site in qann.sites().values():
            shift = (torch.rand(site.offset.shape, generator=generator) - 0.4) * 0.6
            site.offset.copy_(site.start * shift.to(site.start))
            if site.raw_gain is not None:
                site.raw_gain.copy_(torch.rand((), generator=generator))
    return qann


# --- networks with operators that are not affine ---------------------------------------------------------------------------


class AttentionBlock(nn.Module):
    """A block of a transformer, pre-norm, with an attention that answers a tuple, and a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.mha(y, y, y, need_weights=False)[0]
        x = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


class GroupNet(nn.Module):
    """Group norms in place of batch norms, with ReLU and SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(3, 6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(1, 6)
        self.conv3, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(x)))
        x = functional.silu(self.norm2(self.conv2(functional.max_pool2d(x, 2))))
        return self.head(functional.relu(self.conv3(x)).mean((2, 3)))


class SqueezeNet(nn.Module):
    """Squeeze and excitation: a product of two signals in front of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.fc1, self.fc2 = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.conv2, self.head = nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(x)))
        gate = functional.adaptive_avg_pool2d(x, 1)
        gate = functional.hardsigmoid(self.fc2(functional.relu(self.fc1(gate))))
        return self.head(functional.relu(self.conv2(x * gate)).mean((2, 3)))


class BottleneckNet(nn.Module):
    """A residual sum of linear bottlenecks that a convolution reads, without an activation in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.three, self.norm, self.head = nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.two(functional.relu6(3 * self.one(x)))
        return self.head(functional.relu(self.norm(self.three(x))).mean((2, 3)))


class SmoothNet(nn.Module):
    """PReLU, Hardswish and SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(2, 6, 3, padding=1), nn.PReLU(6)
        self.conv2, self.act2 = nn.Conv2d(6, 6, 3, groups=2), nn.Hardswish(inplace=True)
        self.conv3, self.act3, self.head = nn.Conv2d(6, 6, 1), nn.SiLU(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act2(self.conv2(self.act1(self.conv1(x))))
        return self.head(self.act3(self.conv3(x)).mean((2, 3)))


class ConcatenatedNet(nn.Module):
    """Spikes, graded values and the input side by side in front of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 3, padding=1)
        self.three, self.head = nn.Conv2d(10, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([functional.relu(self.one(x)), torch.tanh(self.two(x)), x], dim=1)
        return self.head(functional.leaky_relu(self.three(x), 0.1).mean((2, 3)))


#: name -> class, as :data:`NETWORKS`
CURVED: dict[str, Callable[[], nn.Module]] = {
    "attention": AttentionBlock,
    "group": GroupNet,
    "squeeze": SqueezeNet,
    "bottleneck": BottleneckNet,
    "smooth": SmoothNet,
    "concatenated": ConcatenatedNet,
}

SHAPES |= {"attention": (5, 8)} | dict.fromkeys(("group", "squeeze", "bottleneck", "smooth", "concatenated"), (2, 8, 8))


def codes_of(qann: ps.QuantizedNetwork, x: Tensor) -> dict[str, Tensor]:
    """The codes of every site for one input."""
    seen: dict[str, Tensor] = {}
    handles = [
        site.register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, module.encode(inputs[0]))
        )
        for name, site in qann.sites().items()
    ]
    with torch.no_grad():
        qann(x)
    for handle in handles:
        handle.remove()
    return seen
