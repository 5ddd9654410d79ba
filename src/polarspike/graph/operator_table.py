"""The operator table: every operator that a captured graph may hold, keyed by meaning.

Modules, functions and methods that do the same thing share a :class:`Meaning`. The rule tables of placement, time and
counting are written over meanings, and checkpoints name operators by the names of this table. Overloads of exported
programs (``aten.add.Tensor``) are translated into the functions of this table when they are captured
(:mod:`polarspike.capture.exported`). Questions about a node are answered by :mod:`polarspike.graph.operators`.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from polarspike.graph import layers
from polarspike.graph.layers import DropPath


class Meaning(Enum):
    """What an operator does to a signal."""

    CONVOLUTION = "convolution"
    LINEAR = "linear"
    MATMUL = "matrix product"
    NORM = "batch norm"
    NORMALIZATION = "normalization"
    AVERAGE = "average"
    MAX_POOLING = "max pooling"
    ACTIVATION = "activation"
    SOFTMAX = "softmax"
    ATTENTION = "attention"
    DROPOUT = "dropout"
    ADD = "add"
    SCALE = "product"
    ELEMENTWISE = "elementwise"
    REDUCTION = "reduction"
    CONCATENATE = "concatenate"
    RESHAPE = "reshape"
    SELECT = "select"
    PAD = "pad"
    UPSAMPLE = "upsample"
    EMBEDDING = "embedding"
    CONSTANT = "constant"
    DISCRETE = "discrete"
    RANDOM = "random"
    RECURRENT = "recurrent"
    SIZE = "size"


@dataclass(frozen=True)
class ModuleEntry:
    """One row for a module type: its meaning, and the constructor arguments that rebuild it."""

    meaning: Meaning
    fields: tuple[str, ...] = ()


_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias",
                "padding_mode")  # fmt: skip
_TRANSPOSED = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups", "bias",
               "dilation")  # fmt: skip
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def _rows(meaning: Meaning, fields: tuple[str, ...], *kinds: type[nn.Module]) -> dict[type[nn.Module], ModuleEntry]:
    return dict.fromkeys(kinds, ModuleEntry(meaning, fields))


MODULES: dict[type[nn.Module], ModuleEntry] = {
    **_rows(Meaning.CONVOLUTION, _CONVOLUTION, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    **_rows(Meaning.CONVOLUTION, _TRANSPOSED, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    **_rows(Meaning.LINEAR, ("in_features", "out_features", "bias"), nn.Linear),
    **_rows(Meaning.NORM, _NORM, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    **_rows(Meaning.NORMALIZATION, ("normalized_shape", "eps", "elementwise_affine"), nn.RMSNorm),
    **_rows(Meaning.NORMALIZATION, ("normalized_shape", "eps", "elementwise_affine", "bias"), nn.LayerNorm),
    **_rows(Meaning.NORMALIZATION, ("num_groups", "num_channels", "eps", "affine"), nn.GroupNorm),
    **_rows(Meaning.NORMALIZATION, _NORM, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    **_rows(Meaning.NORMALIZATION, ("size", "alpha", "beta", "k"), nn.LocalResponseNorm),
    **_rows(Meaning.AVERAGE, _AVERAGE, nn.AvgPool1d),
    **_rows(Meaning.AVERAGE, (*_AVERAGE, "divisor_override"), nn.AvgPool2d, nn.AvgPool3d),
    **_rows(Meaning.AVERAGE, ("output_size",), nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    **_rows(Meaning.MAX_POOLING, _MAX, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    **_rows(Meaning.MAX_POOLING, ("output_size",), nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    **_rows(Meaning.ACTIVATION, (), nn.ReLU, nn.ReLU6, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid,
            nn.Tanh, nn.SELU, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink),
    **_rows(Meaning.ACTIVATION, ("negative_slope",), nn.LeakyReLU),
    **_rows(Meaning.ACTIVATION, ("approximate",), nn.GELU),
    **_rows(Meaning.ACTIVATION, ("alpha",), nn.ELU, nn.CELU),
    **_rows(Meaning.ACTIVATION, ("beta", "threshold"), nn.Softplus),
    **_rows(Meaning.ACTIVATION, ("min_val", "max_val"), nn.Hardtanh),
    **_rows(Meaning.ACTIVATION, ("lower", "upper"), nn.RReLU),
    **_rows(Meaning.ACTIVATION, ("num_parameters",), nn.PReLU),
    **_rows(Meaning.ACTIVATION, ("lambd",), nn.Softshrink, nn.Hardshrink),
    **_rows(Meaning.ACTIVATION, ("threshold", "value"), nn.Threshold),
    **_rows(Meaning.ACTIVATION, ("dim",), nn.GLU),
    **_rows(Meaning.SOFTMAX, ("dim",), nn.Softmax, nn.LogSoftmax, nn.Softmin),
    **_rows(Meaning.SOFTMAX, (), nn.Softmax2d),
    **_rows(Meaning.DROPOUT, ("p",), nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
            nn.FeatureAlphaDropout),
    **_rows(Meaning.DROPOUT, ("p", "mode"), DropPath),
    **_rows(Meaning.RESHAPE, (), nn.Identity),
    **_rows(Meaning.RESHAPE, ("start_dim", "end_dim"), nn.Flatten),
    **_rows(Meaning.RESHAPE, ("dim", "unflattened_size"), nn.Unflatten),
    **_rows(Meaning.RESHAPE, ("upscale_factor",), nn.PixelShuffle),
    **_rows(Meaning.RESHAPE, ("downscale_factor",), nn.PixelUnshuffle),
    **_rows(Meaning.RESHAPE, ("groups",), nn.ChannelShuffle),
    **_rows(Meaning.RESHAPE, ("kernel_size", "dilation", "padding", "stride"), nn.Unfold),
    **_rows(Meaning.PAD, ("padding",), nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d,
            nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.CircularPad1d,
            nn.CircularPad2d, nn.CircularPad3d),
    **_rows(Meaning.PAD, ("padding", "value"), nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    **_rows(Meaning.UPSAMPLE, ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor"), nn.Upsample),
    **_rows(Meaning.UPSAMPLE, ("size", "scale_factor"), nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    **_rows(Meaning.EMBEDDING, ("num_embeddings", "embedding_dim", "padding_idx"), nn.Embedding),
}  # fmt: skip

#: Modules of torch that keep a state between calls, or between positions of a sequence: named only to be refused well.
RECURRENT = (nn.RNNBase, nn.RNNCellBase)

# A function has a namespace (torch, F, operator, builtins, linalg); a method begins with a dot.
_NAMES: dict[Meaning, str] = {
    Meaning.CONVOLUTION: "F.conv1d F.conv2d F.conv3d torch.conv1d torch.conv2d torch.conv3d F.conv_transpose1d "
    "F.conv_transpose2d F.conv_transpose3d torch.conv_transpose1d torch.conv_transpose2d torch.conv_transpose3d",
    Meaning.LINEAR: "F.linear",
    Meaning.MATMUL: "torch.matmul operator.matmul torch.bmm torch.mm torch.mv torch.einsum torch.addmm torch.baddbmm "
    ".matmul .bmm .mm .mv .addmm .baddbmm",
    Meaning.NORM: "F.batch_norm torch.batch_norm",
    Meaning.NORMALIZATION: "F.layer_norm torch.layer_norm F.group_norm torch.group_norm F.instance_norm "
    "torch.instance_norm F.rms_norm torch.rms_norm F.normalize F.local_response_norm",
    Meaning.AVERAGE: "F.avg_pool1d F.avg_pool2d F.avg_pool3d F.adaptive_avg_pool1d F.adaptive_avg_pool2d "
    "F.adaptive_avg_pool3d torch.mean torch.sum torch.avg_pool1d torch.adaptive_avg_pool1d torch.cumsum .mean .sum "
    ".cumsum",
    Meaning.MAX_POOLING: "F.max_pool1d F.max_pool2d F.max_pool3d F.adaptive_max_pool1d F.adaptive_max_pool2d "
    "F.adaptive_max_pool3d torch.max_pool1d torch.max_pool2d torch.max_pool3d",
    Meaning.ACTIVATION: "F.relu F.relu_ torch.relu torch.relu_ F.relu6 F.leaky_relu F.leaky_relu_ F.gelu F.silu F.mish "
    "F.hardswish F.hardsigmoid F.sigmoid torch.sigmoid F.tanh torch.tanh F.elu F.elu_ F.celu torch.celu F.selu "
    "torch.selu F.softplus F.softsign F.logsigmoid F.hardtanh F.hardtanh_ F.prelu torch.prelu F.softshrink "
    "F.hardshrink F.threshold F.glu F.tanhshrink .relu .relu_ .sigmoid .sigmoid_ .tanh .tanh_",
    Meaning.SOFTMAX: "layers.masked_softmax F.softmax torch.softmax F.log_softmax torch.log_softmax F.softmin .softmax "
    ".log_softmax",
    Meaning.ATTENTION: "F.scaled_dot_product_attention",
    Meaning.DROPOUT: "F.dropout F.dropout1d F.dropout2d F.dropout3d torch.dropout torch.dropout_ F.alpha_dropout "
    "torch.feature_dropout",
    Meaning.ADD: "operator.add operator.iadd torch.add operator.sub operator.isub torch.sub torch.rsub .add .add_ .sub "
    ".sub_ torch.subtract",
    Meaning.SCALE: "operator.mul operator.imul torch.mul torch.multiply operator.truediv operator.itruediv torch.div "
    "torch.divide torch.true_divide operator.neg torch.neg torch.addcmul torch.addcdiv torch.lerp torch.outer .mul .mul_ "
    ".div .div_ .neg .addcmul .true_divide .multiply .lerp",
    Meaning.ELEMENTWISE: "torch.exp torch.exp2 torch.expm1 torch.log torch.log2 torch.log10 torch.log1p torch.sqrt "
    "torch.rsqrt torch.pow operator.pow torch.square torch.reciprocal torch.erf torch.sin torch.cos torch.tan torch.atan "
    "torch.sinh torch.cosh torch.abs operator.abs builtins.abs torch.clamp torch.clamp_min torch.clamp_max torch.clip "
    "torch.minimum torch.maximum torch.special.expit torch.hypot torch.atan2 torch.logaddexp torch.xlogy torch.sign "
    "torch.round torch.floor torch.ceil torch.trunc torch.frac torch.nan_to_num .exp .log .sqrt .rsqrt .pow .square "
    ".reciprocal .erf .sin .cos .abs .clamp .clamp_ .clamp_min .clamp_max .clip .minimum .maximum .log1p .sign .round "
    ".floor .ceil .nan_to_num",
    Meaning.REDUCTION: "torch.var torch.std torch.var_mean torch.std_mean torch.norm linalg.vector_norm linalg.norm "
    "torch.amax torch.amin torch.max torch.min torch.prod torch.logsumexp torch.cumprod .var .std .norm .amax .amin .max "
    ".min .prod .logsumexp .cumprod F.cosine_similarity torch.cosine_similarity F.lp_pool2d torch.cdist",
    Meaning.CONCATENATE: "torch.cat torch.concat torch.concatenate torch.stack torch.hstack torch.vstack torch.dstack "
    "torch.slice_scatter torch.select_scatter",
    Meaning.RESHAPE: "torch.flatten torch.reshape torch.permute torch.transpose torch.squeeze torch.unsqueeze "
    "torch.unflatten torch.chunk torch.split torch.split_with_sizes torch.tensor_split torch.unbind torch.select "
    "torch.narrow torch.index_select torch.gather torch.roll torch.flip torch.rot90 torch.tile torch.broadcast_to "
    "torch.diagonal torch.repeat_interleave operator.getitem torch.movedim torch.moveaxis torch.swapaxes "
    "torch.swapdims F.pixel_shuffle torch.pixel_shuffle F.pixel_unshuffle torch.pixel_unshuffle F.channel_shuffle "
    "torch.channel_shuffle F.unfold F.fold torch.clone torch.detach torch.ravel torch.t torch.adjoint .view .reshape "
    ".flatten .permute .transpose .contiguous .squeeze .unsqueeze .unflatten .chunk .split .split_with_sizes .unbind "
    ".select .narrow .index_select .gather .roll .flip .tile .expand .expand_as .view_as .reshape_as .broadcast_to "
    ".repeat .repeat_interleave .diagonal .movedim .swapaxes .swapdims .unfold .float .double .half .bfloat16 .to .type "
    ".type_as .clone .detach .t .ravel",
    Meaning.SELECT: "layers.additive_mask layers.blocking_mask layers.causal_mask torch.where torch.masked_fill .where "
    ".masked_fill .masked_fill_ torch.tril torch.triu .tril .triu",
    Meaning.PAD: "F.pad torch.constant_pad_nd",
    Meaning.UPSAMPLE: "F.interpolate F.grid_sample",
    Meaning.EMBEDDING: "F.embedding",
    Meaning.CONSTANT: "torch.zeros torch.ones torch.full torch.empty torch.arange torch.linspace torch.eye torch.tensor "
    "torch.zeros_like torch.ones_like torch.full_like torch.empty_like torch.meshgrid "
    "torch.diff F.affine_grid torch.as_tensor "
    ".new_zeros .new_ones .new_full .new_empty .new_tensor torch.scalar_tensor F.one_hot .fill_ .zero_",
    Meaning.DISCRETE: "torch.argmax torch.argmin torch.topk torch.sort torch.argsort torch.bincount torch.nonzero "
    "torch.unique torch.searchsorted torch.bucketize .argmax .argmin .topk .sort .argsort .nonzero .long .int .bool "
    "operator.gt operator.lt operator.ge operator.le operator.eq operator.ne torch.gt torch.lt torch.ge torch.le "
    "torch.eq torch.ne .gt .lt .ge .le .eq .ne torch.logical_and torch.logical_or torch.logical_not torch.logical_xor "
    "torch.bitwise_and torch.bitwise_or torch.bitwise_not operator.and_ operator.or_ operator.invert operator.xor "
    "torch.isnan torch.isinf torch.isfinite torch.any torch.all .any .all torch.isin torch.floor_divide torch.remainder "
    "torch.fmod .floor_divide .remainder .logical_and .logical_or .logical_not .bitwise_not .bitwise_and .bitwise_or",
    Meaning.RANDOM: "torch.rand torch.randn torch.randint torch.randperm torch.rand_like torch.randn_like "
    "torch.randint_like torch.bernoulli torch.multinomial torch.normal torch.poisson F.gumbel_softmax F.rrelu .bernoulli "
    ".bernoulli_ .normal_ .uniform_ .random_ .multinomial .exponential_",
    Meaning.RECURRENT: "torch.lstm torch.gru torch.rnn_tanh torch.rnn_relu torch.lstm_cell torch.gru_cell "
    "torch.rnn_tanh_cell torch.rnn_relu_cell",
    Meaning.SIZE: "builtins.getattr operator.floordiv operator.mod builtins.int builtins.float builtins.max builtins.min "
    "math.ceil math.floor .size .dim .numel .stride .is_floating_point builtins.round",
}  # fmt: skip


def _namespaces() -> dict[str, Any]:
    import math

    return {
        "torch": torch,
        "F": functional,
        "operator": operator,
        "builtins": builtins,
        "linalg": torch.linalg,
        "math": math,
        "layers": layers,
    }


NAMESPACES = _namespaces()


def _resolve(name: str) -> Callable[..., Any]:
    namespace, *path = name.split(".")
    found = NAMESPACES[namespace]
    for part in path:
        found = getattr(found, part)
    function: Callable[..., Any] = found
    return function


#: name in a checkpoint -> function, and back with its meaning
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: _resolve(name) for names in _NAMES.values() for name in names.split() if not name.startswith(".")
}
NAME_OF_FUNCTION: dict[Callable[..., Any], str] = {function: name for name, function in reversed(FUNCTIONS.items())}
FUNCTION_MEANINGS: dict[Callable[..., Any], Meaning] = {
    _resolve(name): meaning for meaning, names in _NAMES.items() for name in names.split() if not name.startswith(".")
}
METHODS: dict[str, Meaning] = {
    name[1:]: meaning for meaning, names in _NAMES.items() for name in names.split() if name.startswith(".")
}

#: attributes of a tensor that depend on its shape and type alone
ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device"})

#: functions and methods whose result depends on the shape, type and device of their first argument alone
READ_SIZE = frozenset(
    {
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "new_tensor",
        "causal_mask",
    }
)

_METHODS_IN_PLACE = [
    "relu",
    "add",
    "sub",
    "mul",
    "div",
    "sigmoid",
    "tanh",
    "masked_fill",
    "clamp",
    "clamp_min",
    "clamp_max",
    "exp",
    "sqrt",
    "pow",
    "neg",
]
# Of exported programs, where an overload without a method of its name alters its argument.
_FUNCTIONS_IN_PLACE = [
    "silu",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "leaky_relu",
    "elu",
    "celu",
    "selu",
    "mish",
    "threshold",
    "relu6",
    "dropout",
]

#: functions and methods that alter their first argument, and what they are without that
IN_PLACE: dict[Callable[..., Any] | str, Callable[..., Any] | str] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    functional.relu_: functional.relu,
    torch.relu_: torch.relu,
    torch.dropout_: torch.dropout,
    functional.leaky_relu_: functional.leaky_relu,
    functional.elu_: functional.elu,
    functional.hardtanh_: functional.hardtanh,
    **{f"{name}_": name for name in _METHODS_IN_PLACE},
    **{f"{name}_": getattr(functional, name) for name in _FUNCTIONS_IN_PLACE},
}
