"""Where sites go: in front of every synaptic operator, so that its operands are spikes, except the network's input.

Synaptic operators are convolutions, linear layers and products of two signals; all other operators either carry spikes
on (reshape, concatenate, sums of spikes, max pooling, batch norm, averages over whole images) or end in graded values
(averages over windows in front of a convolution, and everything that is not affine). Walking the graph once tells, for
every signal, what arrives there:

    SPIKES   codes of one site at every place            SUM     sums and scalings of spikes
    INPUT    an affine function of the network's input   MIXED   averages of spikes, spikes beside the input
    GRADED   anything else

A rectifier whose answer reaches a synapse (or the output) *becomes* a site. In front of an average over windows that a
convolution reads it does not: that average is taken of graded values, and quantized once, behind it, so that the convolution
only accumulates. The few multiplications behind an average over whole images stay. Wherever a graded operand is left, a site
is put in front of the synapse: with negative levels, unless the operand cannot be negative.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from torch import fx
from torch.utils import _pytree as pytree

from polarspike.graph.contract import Rule
from polarspike.graph.editing import scope_of
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import argument, describe_target, meaning_of, moving, reads_size

_SYNAPTIC = (Meaning.CONVOLUTION, Meaning.LINEAR, Meaning.MATMUL)
#: Carry spikes on, if their rule over time is affine (max pooling: on sums of codes).
_CARRYING = frozenset({Meaning.NORM, Meaning.AVERAGE, Meaning.ADD, Meaning.SCALE, Meaning.CONCATENATE, Meaning.RESHAPE,
                       Meaning.SELECT, Meaning.PAD, Meaning.UPSAMPLE, Meaning.DROPOUT})  # fmt: skip
_MIXING = frozenset({Meaning.NORM, Meaning.AVERAGE, Meaning.ADD, Meaning.UPSAMPLE, Meaning.SELECT})
_NEVER_NEGATIVE = frozenset({"ReLU", "ReLU6", "Sigmoid", "Hardsigmoid", "Softplus", "Softmax", "Softmax2d", "sigmoid",
                             "softmax", "masked_softmax", "relu", "relu6", "exp", "exp2", "abs", "square", "sqrt",
                             "rsqrt", "hardsigmoid", "softplus", "vector_norm", "norm", "var", "std", "expit"})  # fmt: skip

_PRODUCTS = frozenset({"mul", "imul", "multiply", "div", "truediv", "itruediv", "divide", "true_divide"})


class Arrival(Enum):
    """What a signal carries."""

    SPIKES = "spikes of one site"
    SUM = "sums of spikes"
    INPUT = "the network's input"
    MIXED = "averages of spikes, or spikes beside the network's input"
    GRADED = "graded values"


@dataclass(frozen=True)
class Operand:
    """A signal that needs a site in front of its synapses.

    Attributes:
        node: the signal.
        readers: the synaptic operators that read it, in order.
        name: the site's name, after its first reader.
        negative: whether the signal can be negative.
        reason: why it is signed or not, in words.
        channel_dim: the dimension with a step per channel, if asked for; None where there is none.
    """

    node: fx.Node
    readers: tuple[fx.Node, ...]
    name: str
    negative: bool
    reason: str
    channel_dim: int | None


def synapses_of(
    network: fx.GraphModule, rules: dict[fx.Node, Rule], dependent: Collection[fx.Node]
) -> dict[fx.Node, list[fx.Node]]:
    """The synaptic operators and the signals that they take as operands."""
    return {
        node: _operands(network, node, dependent)
        for node in network.graph.nodes
        if node in rules and meaning_of(network, node) in _SYNAPTIC
    }


def _operands(network: fx.GraphModule, node: fx.Node, dependent: Collection[fx.Node]) -> list[fx.Node]:
    name = describe_target(network, node).rpartition(".")[2]
    given: object = (node.args, {key: value for key, value in node.kwargs.items() if key != "bias"})
    if name in ("addmm", "baddbmm"):
        # The first is only added.
        given = (
            node.args[1:],
            {key: value for key, value in node.kwargs.items() if key not in ("input", "alpha", "beta")},
        )
    elif meaning_of(network, node) in (Meaning.CONVOLUTION, Meaning.LINEAR):
        given = (node.args[:2], {key: value for key, value in node.kwargs.items() if key in ("input", "weight")})
    wanted = set(_leaves(given))
    return [operand for operand in moving(node, dependent) if operand in wanted]


def _leaves(value: object) -> list[fx.Node]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, fx.Node)]


def reaching(network: fx.GraphModule, rules: dict[fx.Node, Rule], synapses: Collection[fx.Node]) -> set[fx.Node]:
    """The signals that reach a synapse or the output through operators that carry spikes."""
    found: set[fx.Node] = set()
    for node in reversed(list(network.graph.nodes)):
        for user in node.users:
            carrying = user in rules and _carries(network, user, rules[user])
            if user in synapses or user.op == "output" or (carrying and user in found):
                found.add(node)
    return found


def arrivals(
    network: fx.GraphModule, rules: dict[fx.Node, Rule], dependent: Collection[fx.Node], sites: Collection[fx.Node]
) -> dict[fx.Node, Arrival]:
    """What every signal carries, given the rectifiers that become sites."""
    found: dict[fx.Node, Arrival] = {}
    for node in network.graph.nodes:
        if node not in dependent or node.op == "output":
            continue
        if node in sites:
            found[node] = Arrival.SPIKES
        elif node.op == "placeholder" or meaning_of(network, node) is Meaning.EMBEDDING:
            found[node] = Arrival.INPUT
        else:
            found[node] = _behind(network, node, rules, [found[parent] for parent in moving(node, dependent)])
    return found


def _behind(network: fx.GraphModule, node: fx.Node, rules: dict[fx.Node, Rule], parents: list[Arrival]) -> Arrival:
    meaning = meaning_of(network, node)
    affine = node in rules and rules[node] is Rule.AFFINE and meaning not in _SYNAPTIC
    if affine and all(parent is Arrival.INPUT for parent in parents):
        return Arrival.INPUT
    if node not in rules or not _carries(network, node, rules[node]) or Arrival.GRADED in parents:
        return Arrival.GRADED
    if meaning is Meaning.MAX_POOLING:
        return Arrival.SPIKES if parents == [Arrival.SPIKES] else Arrival.GRADED
    averaged = meaning is Meaning.AVERAGE or (meaning is Meaning.UPSAMPLE and not _copies(network, node))
    if averaged or Arrival.MIXED in parents or Arrival.INPUT in parents:
        return Arrival.MIXED
    plain = all(parent is Arrival.SPIKES for parent in parents) and meaning not in _MIXING
    return Arrival.SPIKES if plain else Arrival.SUM


def _is_local(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node averages over windows, or enlarges with weights, so that it leaves more than one value per channel."""
    meaning = meaning_of(network, node)
    if meaning is Meaning.UPSAMPLE:
        return not _copies(network, node)
    name = describe_target(network, node).rpartition(".")[2] if meaning is Meaning.AVERAGE else ""
    if name.startswith("Adaptive"):
        sizes: object = network.get_submodule(str(node.target)).output_size
    elif name.startswith("adaptive"):
        sizes = argument(node, 1, "output_size")
    else:
        return name.lower().replace("_", "").startswith("avgpool")
    return any(size != 1 for size in pytree.tree_leaves(sizes))


def _feeds_convolution(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a convolution reads this signal, directly or through operators that only carry it."""
    seen, front = {node}, [node]
    while front:
        for user in front.pop().users:
            meaning = meaning_of(network, user)
            if meaning is Meaning.CONVOLUTION:
                return True
            if user not in seen and (meaning in _CARRYING or meaning is Meaning.MAX_POOLING):
                seen.add(user)
                front.append(user)
    return False


def _copies(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an enlargement repeats elements, without a weight."""
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    mode = getattr(module, "mode", None) if module is not None else argument(node, 3, "mode", "nearest")
    return str(mode).startswith("nearest")


def _carries(network: fx.GraphModule, node: fx.Node, rule: Rule) -> bool:
    meaning = meaning_of(network, node)
    if meaning is Meaning.MAX_POOLING:
        return True
    if _is_local(network, node) and _feeds_convolution(network, node):
        return False
    return meaning in _CARRYING and rule is Rule.AFFINE and not reads_size(node)


def operands_to_place(
    network: fx.GraphModule,
    rules: dict[fx.Node, Rule],
    dependent: Collection[fx.Node],
    sites: Collection[fx.Node],
    inputs: bool,
) -> list[Operand]:
    """The operands of synapses that are graded (with ``inputs`` also those that are the network's input)."""
    synapses = synapses_of(network, rules, dependent)
    carried = arrivals(network, rules, dependent, sites)
    refused = (Arrival.GRADED, Arrival.INPUT) if inputs else (Arrival.GRADED,)
    readers: dict[fx.Node, list[fx.Node]] = {}
    for synapse, operands in synapses.items():
        for operand in operands:
            if carried[operand] in refused:
                readers.setdefault(operand, []).append(synapse)
    never = _never_negative(network, rules, dependent, sites)
    return [
        Operand(
            node=node,
            readers=tuple(found),
            name=_name(network, node, found[0], synapses),
            negative=node not in never,
            reason=_reason(network, node, found[0], carried[node], synapses, node in never),
            channel_dim=_channel_dim(network, found[0]),
        )
        for node, found in readers.items()
    ]


def _never_negative(
    network: fx.GraphModule, rules: dict[fx.Node, Rule], dependent: Collection[fx.Node], sites: Collection[fx.Node]
) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in network.graph.nodes:
        if node not in dependent or node.op in ("placeholder", "output"):
            continue
        parents = moving(node, dependent)
        meaning = meaning_of(network, node)
        name = describe_target(network, node).rpartition(".")[2]
        plain = name in _NEVER_NEGATIVE or (name == "pow" and argument(node, 1, "exponent") == 2)
        plain |= name in ("clamp", "clamp_min", "clip") and _at_least_zero(argument(node, 1, "min"))
        inherited = node not in sites and parents and all(parent in found for parent in parents)
        if plain or (inherited and _keeps_sign(network, node, meaning, parents)):
            found.add(node)
    return found


def _keeps_sign(network: fx.GraphModule, node: fx.Node, meaning: Meaning | None, parents: list[fx.Node]) -> bool:
    """Whether a node whose signals are never negative answers with one that is not, either."""
    name = describe_target(network, node).rpartition(".")[2]
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    options = [*node.args[1:], *(value for key, value in node.kwargs.items() if key != "input")]
    if meaning is Meaning.CONCATENATE:
        return all(leaf in parents for leaf in node.all_input_nodes)
    if meaning is Meaning.PAD:
        value = getattr(module, "value", 0) if module else argument(node, 2 if "constant" in name else 3, "value", 0)
        return value is None or (isinstance(value, (int, float)) and value >= 0)
    if meaning is Meaning.ADD:
        added = [value for value in (*node.args, *node.kwargs.values()) if value not in parents]
        return "sub" not in name and all(_at_least_zero(value) for value in added)
    if meaning is Meaning.SCALE:
        plain = name.strip("_") in _PRODUCTS
        return plain and (len(parents) == 2 or _positive(node, parents[0]))
    if meaning is Meaning.UPSAMPLE:
        return "bicubic" not in (*options, getattr(module, "mode", ""))
    if name in ("amax", "amin"):
        return True
    return meaning in (Meaning.MAX_POOLING, Meaning.AVERAGE, Meaning.DROPOUT, Meaning.RESHAPE)


def _at_least_zero(value: object) -> bool:
    return isinstance(value, (int, float)) and value >= 0


def _positive(node: fx.Node, signal: fx.Node) -> bool:
    factors = [value for value in (*node.args, *node.kwargs.values()) if value is not signal]
    return all(isinstance(value, (int, float)) and value > 0 for value in factors)


def _name(network: fx.GraphModule, node: fx.Node, reader: fx.Node, synapses: dict[fx.Node, list[fx.Node]]) -> str:
    if reader.op == "call_module":
        return f"{reader.target}_input"
    role = _role(network, node, reader, synapses)
    scope = scope_of(reader)
    if not role:
        label = describe_target(network, reader).rpartition(".")[2]
        position = synapses[reader].index(node)
        role = label if len(synapses[reader]) == 1 else f"{label}_{('left', 'right')[min(position, 1)]}"
        return ".".join(filter(None, [scope, f"{role}_input"]))
    return ".".join(filter(None, [scope, role]))


def _role(network: fx.GraphModule, node: fx.Node, reader: fx.Node, synapses: dict[fx.Node, list[fx.Node]]) -> str:
    """Query, key, value or probabilities, where a product of two signals is one of attention; else empty."""
    operands = synapses[reader]
    if meaning_of(network, reader) is not Meaning.MATMUL or len(operands) != 2:
        return ""
    if any(_comes_from_softmax(network, operand) for operand in operands):
        return "probabilities" if _comes_from_softmax(network, node) else "value"
    if _goes_to_softmax(network, reader):
        return ("query", "key")[operands.index(node)]
    return ""


def _comes_from_softmax(network: fx.GraphModule, node: fx.Node) -> bool:
    while meaning_of(network, node) in (Meaning.RESHAPE, Meaning.DROPOUT) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return meaning_of(network, node) is Meaning.SOFTMAX


def _goes_to_softmax(network: fx.GraphModule, node: fx.Node) -> bool:
    passed = (Meaning.SCALE, Meaning.ADD, Meaning.SELECT, Meaning.RESHAPE, Meaning.DROPOUT, Meaning.MATMUL)
    seen, front = {node}, [node]
    for _ in range(12):  # a mask, a bias, a scale, a reshape: not half a network
        front = [user for item in front for user in item.users if user not in seen]
        seen.update(front)
        if any(meaning_of(network, item) is Meaning.SOFTMAX for item in front):
            return True
        front = [item for item in front if meaning_of(network, item) in passed[:-1]]
    return False


def _reason(
    network: fx.GraphModule,
    node: fx.Node,
    reader: fx.Node,
    arrival: Arrival,
    synapses: dict[fx.Node, list[fx.Node]],
    never_negative: bool,
) -> str:
    role = _role(network, node, reader, synapses)
    if role == "probabilities":
        return "attention probabilities, never negative"
    if role:
        return f"{role} of attention, signed by nature"
    if arrival is Arrival.INPUT:
        return "the network's input"
    source = node
    passed = (Meaning.RESHAPE, Meaning.DROPOUT, Meaning.PAD, Meaning.CONCATENATE, Meaning.NORM, Meaning.MAX_POOLING)
    while meaning_of(network, source) in passed and source.all_input_nodes:
        source = source.all_input_nodes[0]
    meaning = meaning_of(network, source)
    name = describe_target(network, source) if source.op.startswith("call") else source.name
    if meaning is Meaning.ADD:
        what = "a residual sum"
    elif meaning in _SYNAPTIC:
        what = f"a linear bottleneck (after {name}, no activation)"
    elif meaning is Meaning.SCALE:
        what = "a product of signals"
    else:
        what = f"after {name}"
    return f"{what}, never negative" if never_negative else f"{what}, signed by nature"


def channel_dim_behind(network: fx.GraphModule, node: fx.Node, dependent: set[fx.Node]) -> int | None:
    """The dimension of a signal's channels, which the next synapse behind it decides, past dropout.

    In front of a linear layer, or of a product with a constant behind it, it is the last one; a product of two signals has
    none; everywhere else it is dimension 1.
    """
    front = [node]
    while front:
        part = front.pop(0)
        for user in part.users:
            meaning = meaning_of(network, user)
            if meaning is Meaning.MATMUL and len(moving(user, dependent)) == 1:
                return 1 if user.args[-1] is part else -1
            if meaning in _SYNAPTIC:
                return _channel_dim(network, user)
            if meaning is Meaning.DROPOUT:
                front.append(user)
    return 1


def _channel_dim(network: fx.GraphModule, reader: fx.Node) -> int | None:
    return {Meaning.CONVOLUTION: 1, Meaning.LINEAR: -1}.get(meaning_of(network, reader))  # type: ignore[arg-type]
