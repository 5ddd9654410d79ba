"""Cross-layer equalization: balance the channels between two layers of a float network without changing what it computes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from polarspike.capture import capture, check_capture
from polarspike.capture.programs import model_of
from polarspike.common.inputs import Inputs, batches_of, require_batches, to_device
from polarspike.common.modules import apply, device_of, evaluating, hooked, ranks_behind_linear
from polarspike.graph.editing import SHARED, finish
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import argument, base_of, describe_target, meaning_of
from polarspike.graph.synaptic import SynapticLayer, synaptic_layers
from polarspike.sites import require_float

# f(a x) = a f(x) for every a > 0, channel by channel.
_HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity)
_POOLING = frozenset({Meaning.MAX_POOLING, Meaning.AVERAGE})
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# The norm by which a channel's signal is measured: between its deviation and its largest value, as a good step is.
_POWER = 4
_ROUNDS = 200
_SETTLED = 1e-3
# No channel is scaled beyond this: a dead one says nothing, and float32 must hold the products.
_MOST = 2.0**16

_log = logging.getLogger("polarspike")


@dataclass(frozen=True)
class Pair:
    """Two layers between which channels can be scaled.

    Attributes:
        first: the layer that makes the channels.
        second: the only layer that reads them.
        by_norm: whether the batch norm behind ``first`` takes the scale, instead of its weight.
        channels: how many there are; ``second`` may read several values of each (behind a flattening).
    """

    first: SynapticLayer
    second: SynapticLayer
    by_norm: bool
    channels: int


@torch.no_grad()
def equalize(
    model: nn.Module | ExportedProgram, example: Inputs, batches: Iterable[Any] | Tensor | None = None
) -> fx.GraphModule:
    """A copy of a float model that computes the same, with channels of like size between its layers.

    For two layers with nothing but positively homogeneous operators f between them (batch norm behind the first; ReLU,
    LeakyReLU, PReLU or none; pooling, dropout, flattening), each with one reader, and for any s_i > 0

        W2 f(W1 x + b1) = W2 diag(s) f(diag(1/s) (W1 x + b1))

    A site with one step for all channels wastes its levels on channels that are much smaller than the largest. Hence

        with batches:     s_i = m_i / exp(mean log m),  m_i = (E[x_i^4])^(1/4): all *signals* x_i get the same size
        without:          s_i = sqrt(r1_i r2_i) / r2_i, r = largest |weight| of channel i: all *weight* ranges agree,
                          iterated over all pairs until no s differs from 1 by more than 0.1 %

    The weights here stay floating-point, so signals are what counts: give batches. Ranges of weights are what is known
    without data, and only loosely related. With granularity="channel" there is nothing left to gain.

    ReLU6 has a ceiling and GELU or SiLU a curve: pairs across them are left alone, and so are residual sums, which several
    layers read, and layers that share weights. How many pairs were found is logged under the name "polarspike".

    Args:
        model: a float module, as :func:`polarspike.quantize` takes it; it is left untouched.
        example: an example input batch.
        batches: an iterable of inputs or (inputs, target), or one tensor, read once; memory does not grow with them.

    Returns:
        A graph module with the model's own names, to be given to :func:`polarspike.quantize`.

    Raises:
        CaptureError, OperatorError, InputError: what capturing the model raises, and if the outputs changed.
        CalibrationError: an empty loader.

    Source: Nagel et al.: Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019), section 4.1,
    for the identity and the ranges of weights; the balance of signals is this project's own choice.
    """
    require_float(model, "equalize: ", "; equalize it before polarspike.quantize")
    model = model_of(model)
    network = capture(model, example)
    pairs = pairs_of(network, ranks_behind_linear(network, example))
    if batches is None:
        _balance_weights(network, pairs)
    else:
        _balance_signals(network, pairs, batches)
    check_capture(model, finish(network), example, network.meta[SHARED])
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in network.named_modules():
        module.training = modes.get(name, model.training)
    _log.info("equalized %d pairs of %d layers", len(pairs), len(synaptic_layers(network)))
    return network


def pairs_of(network: fx.GraphModule, dimensions: dict[str, int]) -> list[Pair]:
    """The pairs of layers between which channels can be scaled, in the order of the graph.

    Args:
        network: a captured graph.
        dimensions: of the output of every linear layer, by path; only of vectors are the features dimension 1.
    """
    layers = {layer.node: layer for layer in synaptic_layers(network)}
    pairs = []
    for layer in layers.values():
        module = network.get_submodule(layer.name)
        by_place = not isinstance(module, nn.Linear) or dimensions.get(layer.name) == 2  # channels are dimension 1
        by_norm = layer.norm is not None and layer.norm_alone and by_place
        node = layer.norm if by_norm and layer.norm is not None else layer.node
        second = _reader(network, node, layers, by_place)
        if second is None or not (by_norm or layer.alone):
            continue
        channels, read = _channels(module), _inputs(network.get_submodule(second.name))
        if read == channels or (read % channels == 0 and isinstance(network.get_submodule(second.name), nn.Linear)):
            pairs.append(Pair(layer, second, by_norm, channels))
    return pairs


def _reader(
    network: fx.GraphModule, node: fx.Node, layers: dict[fx.Node, SynapticLayer], by_place: bool
) -> SynapticLayer | None:
    """The layer that alone reads a signal, through operators that a positive scale per channel commutes with."""
    flat = node.op == "call_module" and _is_of_vectors(network, node, layers)  # (N, features): places are past
    while len(node.users) == 1:
        (reader,) = node.users
        if reader in layers:
            linear = isinstance(network.get_submodule(layers[reader].name), nn.Linear)
            fits = linear == flat if by_place else linear  # else it reads along another dimension
            return layers[reader] if layers[reader].alone and fits else None
        meaning = meaning_of(network, reader)
        pools = meaning in _POOLING and "pool" in describe_target(network, reader).lower()
        if by_place and _flattens(network, reader):
            flat = True
        elif not (_commutes(network, reader, meaning) or (pools and by_place and not flat)):
            return None
        node = reader
    return None


def _is_of_vectors(network: fx.GraphModule, node: fx.Node, layers: dict[fx.Node, SynapticLayer]) -> bool:
    source = node if node in layers else node.all_input_nodes[0]
    return isinstance(network.get_submodule(str(source.target)), nn.Linear)


def _commutes(network: fx.GraphModule, node: fx.Node, meaning: Meaning | None) -> bool:
    if meaning is Meaning.DROPOUT:
        return True
    return node.op == "call_module" and base_of(network.get_submodule(str(node.target))) in _HOMOGENEOUS


def _flattens(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node turns (N, C, ...) into (N, C ...)."""
    if node.op == "call_module":
        module: Any = network.get_submodule(str(node.target))
        return base_of(module) is nn.Flatten and bool(module.start_dim == 1 and module.end_dim == -1)
    if describe_target(network, node).rpartition(".")[2] != "flatten":
        return False
    return (argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)) == (1, -1)


def _balance_weights(network: fx.GraphModule, pairs: list[Pair]) -> None:
    for _ in range(_ROUNDS):
        largest = 0.0
        for pair in pairs:
            first = _makers(network, pair)
            second = _ranges(network.get_submodule(pair.second.name), pair.channels, reading=True)
            scale = _usable((first * second).sqrt() / second)
            _scale(network, pair, scale)
            largest = max(largest, float(scale.log().abs().max()))
        if largest < _SETTLED:
            break


def _balance_signals(network: fx.GraphModule, pairs: list[Pair], batches: Iterable[Any] | Tensor) -> None:
    sums = {pair.second.name: [torch.zeros(()), torch.zeros(())] for pair in pairs}  # powers, values per channel

    def watch(pair: Pair, x: Tensor) -> None:
        linear = isinstance(network.get_submodule(pair.second.name), nn.Linear)
        x = x.reshape(-1, pair.channels, x.shape[-1] // pair.channels) if linear else x.flatten(2)
        total = sums[pair.second.name]
        total[0] = total[0].to(x.device) + x.double().abs().pow(_POWER).sum((0, 2))
        total[1] = total[1] + x.numel() // pair.channels

    handles = [
        network.get_submodule(pair.second.name).register_forward_pre_hook(lambda _, x, pair=pair: watch(pair, x[0]))
        for pair in pairs
    ]
    device, seen = device_of(network), 0
    with hooked(handles), evaluating(network):
        for inputs, _ in batches_of(batches):
            seen += 1
            apply(network, to_device(inputs, device))
    require_batches(seen > 0, "equalize")
    for pair in pairs:
        powers, count = sums[pair.second.name]
        sizes = (powers / count.to(powers)).pow(1 / _POWER)
        alive = sizes[torch.isfinite(sizes) & (sizes > 0)]
        if alive.numel():
            _scale(network, pair, _usable(sizes / alive.log().mean().exp()))


def _usable(scale: Tensor) -> Tensor:
    """One for channels that say nothing: a dead signal or a weight of zeros."""
    sound = torch.isfinite(scale) & (scale > 0)
    return torch.where(sound, scale, torch.ones_like(scale)).clamp(1 / _MOST, _MOST)


def _makers(network: fx.GraphModule, pair: Pair) -> Tensor:
    """The largest |weight| that makes each channel, with the batch norm's factor; (channels,)."""
    weight = _ranges(network.get_submodule(pair.first.name), pair.channels, reading=False)
    if not pair.by_norm or pair.first.norm is None:
        return weight
    norm: Any = network.get_submodule(str(pair.first.norm.target))
    factor = (norm.running_var + norm.eps).rsqrt()
    made: Tensor = weight * (factor if norm.weight is None else norm.weight.abs() * factor)
    return made


def _scale(network: fx.GraphModule, pair: Pair, scale: Tensor) -> None:
    """Divide the channels by ``scale`` where they are made, and multiply the weights that read them."""
    _multiply(network.get_submodule(pair.second.name), scale, pair.channels, reading=True)
    if pair.by_norm and pair.first.norm is not None:
        norm: Any = network.get_submodule(str(pair.first.norm.target))
        if norm.weight is None:
            norm.weight, norm.affine = nn.Parameter(torch.ones_like(norm.running_var)), True
            norm.bias = nn.Parameter(torch.zeros_like(norm.running_var))
        norm.weight.div_(scale.to(norm.weight))
        if norm.bias is not None:
            norm.bias.div_(scale.to(norm.bias))
        return
    layer: Any = network.get_submodule(pair.first.name)
    _multiply(layer, 1 / scale, pair.channels, reading=False)
    if layer.bias is not None:
        layer.bias.div_(scale.to(layer.bias))


def _view(weight: Tensor, layer: Any, channels: int, *, reading: bool) -> tuple[Tensor, tuple[int, ...]]:
    """A weight as a view, and the dimensions of the view that together count the channels.

    (out, in/g, k) of a convolution and (in, out/g, k) of a transposed one are parted into g groups: (g, out/g, in/g, k)
    and (g, in/g, out/g, k); (out, features) of a linear layer reads (out, channels, features/channels).
    """
    if isinstance(layer, nn.Linear):
        return (weight.view(weight.shape[0], channels, -1), (1,)) if reading else (weight, (0,))
    parted = weight.view(layer.groups, weight.shape[0] // layer.groups, *weight.shape[1:])
    first = isinstance(layer, _TRANSPOSED) == reading
    return parted, (0, 1) if first else (0, 2)


def _ranges(layer: Any, channels: int, *, reading: bool) -> Tensor:
    """The largest |weight| per channel that a layer makes, or reads; (channels,)."""
    view, kept = _view(layer.weight, layer, channels, reading=reading)
    return view.abs().amax([d for d in range(view.dim()) if d not in kept]).flatten()


def _multiply(layer: Any, scale: Tensor, channels: int, *, reading: bool) -> None:
    """Multiply the weights of a layer that make, or read, each channel."""
    view, kept = _view(layer.weight, layer, channels, reading=reading)
    view.mul_(scale.to(view).view([n if d in kept else 1 for d, n in enumerate(view.shape)]))


def _channels(module: Any) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)


def _inputs(module: Any) -> int:
    return int(module.in_features if isinstance(module, nn.Linear) else module.in_channels)
