"""Capture a model as a graph, by torch.fx or by torch.export, and show that the graph computes what the model computes.

The graph is a :class:`torch.fx.GraphModule`: an ordinary module with the model's own parameters under their own names,
whose nodes carry the module path and, where torch knows it, the source line that they come from. torch.fx comes first,
because its graph keeps sizes free and follows training mode; it counts only if every node is in the operator table. What
it cannot trace, or traces without understanding, goes to torch.export.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from polarspike.capture.exported import export_graph
from polarspike.capture.passes import standardize
from polarspike.capture.preparation import check_example, check_model, clone_tensors, copy_model, freeze
from polarspike.capture.programs import is_program, model_of
from polarspike.capture.samples import other_batch, shared_inputs
from polarspike.capture.tracing import open_up, trace_graph
from polarspike.common.inputs import (
    Inputs,
    as_call,
    batch_size,
    bind_call,
    graph_inputs_of,
    named_values,
    plain_output,
    rows_of,
    tensors_of,
)
from polarspike.errors import CaptureError, GraphMismatchError, OperatorError, PolarspikeError, SpecError
from polarspike.graph.contract import rule_of
from polarspike.graph.editing import INTEGERS, SHARED, WRITES, signals

#: How a model becomes a graph: by torch.fx, by torch.export, or by whichever of them understands it, in this order.
Route = Literal["auto", "fx", "export"]

_log = logging.getLogger("polarspike")

# A captured graph runs the model's own kernels on the model's own weights, but for attention that is written out; anything
# beyond this relative difference is another computation, not rounding.
_TOLERANCE = 1e-5

_BY_BATCH = (
    "decides by the batch size, or fixes it (x.shape[0] is compared, looped over, or a number in a shape), expected a "
    "forward of any batch size: a sample's answer must not depend on how many there are; move the branch out of the model"
)

# Options of SpikingNetwork.forward, which would swallow an input of the same name.
_OPTIONS = frozenset({"timesteps", "every_step", "execution", "time_dim"})


def capture(model: nn.Module | ExportedProgram, example: Inputs, route: Route = "auto") -> fx.GraphModule:
    """A copy of the model, in evaluation mode, as a standard graph module with the model's own names.

    Args:
        model: a module that torch.fx or torch.export can capture, or an exported program of a free batch size (or the module
            of one); it is left untouched.
        example: an example input batch: a tensor, a tuple (positional) or a dict (keyword).
        route: ``"fx"``, ``"export"``, or ``"auto"`` for the first of the two whose graph holds operators of the table
            alone and computes what the model computes (torch.fx loses writes into a part of a tensor); the choice and its
            reason are logged under the name "polarspike" and kept in ``graph.meta["route"]``. Which inputs are the same
            for all samples, is in ``graph.meta[SHARED]``, by position and by name.

    Raises:
        InputError: the example does not fit the model, or holds NaN or Inf.
        CaptureError: a parameter is not finite, the model is a TorchScript module or answers with objects of its own, or it
            cannot be captured (control flow on values or on the batch size).
        OperatorError: an operator has no rule.
    """
    if route not in get_args(Route):
        raise SpecError(f"route: expected one of {', '.join(map(repr, get_args(Route)))}, got {route!r}")
    model = model_of(model)
    check_model(model)
    answer = check_example(model, example)
    shared = shared_inputs(model, example)
    errors: dict[str, PolarspikeError] = {}
    untraced = _why_not_traced(model) if route == "auto" else ""
    ways = ("export",) if untraced else ("fx", "export") if route == "auto" else (route,)
    for way in ways:
        try:
            graph_module = _understood(_by_way(model, example, way, shared), graph_inputs(model, example))
            if route == "auto" and way == "fx":
                _check_answer(model, graph_module, example, answer)
            elif isinstance(errors.get("fx"), GraphMismatchError) and not graph_module.meta.get(WRITES):
                break  # what torch.fx did not see is no write: a hook, or another network's weights
        except (CaptureError, OperatorError) as error:
            errors[way] = error
            continue
        why = _first_line(errors["fx"]) if "fx" in errors else untraced
        reason = f"; torch.fx: {why}" if why else ""
        graph_module.meta["route"] = f"{way}{reason}"
        graph_module.meta[SHARED] = _however_passed(graph_module, model, example, shared)
        _log.info("%s captured by torch.%s%s", type(model).__name__, way, reason)
        return graph_module
    raise _decisive(errors)


def graph_inputs(model: nn.Module, example: Inputs) -> dict[str, Any]:
    """The inputs of a model's captured graph by name, in order, with their values in an example."""
    return graph_inputs_of(bind_call(model.forward, example))


def _why_not_traced(model: nn.Module) -> str:
    """Why torch.fx is not tried on a model; empty where it is."""
    if is_program(model):
        return "an exported program has no modules to trace"
    if any(base.__name__ == "PreTrainedModel" for part in model.modules() for base in type(part).__mro__):
        return "models of Hugging Face cannot be traced"  # and trying leaves marks on their classes
    return ""


def _however_passed(
    graph_module: fx.GraphModule, model: nn.Module, example: Inputs, inputs: Collection[str]
) -> frozenset[str]:
    """Some inputs of an example by the names of the graph's inputs, and by their positions among these."""
    example = clone_tensors(example)  # one tensor may have been given twice, and be shared in one place alone
    given = named_values(example)
    names = {name for name, value in graph_inputs(model, example).items() if any(value is given[key] for key in inputs)}
    placeholders = enumerate(graph_module.graph.find_nodes(op="placeholder"))
    return frozenset(names | {str(index) for index, node in placeholders if node.target in names})


def _by_way(model: nn.Module, example: Inputs, way: str, shared: Collection[str]) -> fx.GraphModule:
    original = freeze(copy_model(model).eval(), hooks=way == "export")
    if isinstance(original, fx.GraphModule):
        original.graph.eliminate_dead_code()
    original = open_up(original)
    try:
        if way == "fx":
            return trace_graph(original, bind_call(original.forward, example))
        call = as_call(clone_tensors(example))
        graph_module = export_graph(original, *call, graph_inputs(model, example), shared)
        freeze(graph_module)  # what hooks do is in the graph now
        return graph_module
    except PolarspikeError:
        raise
    except Exception as error:
        if "Constraints violated (batch)" in str(error):  # torch's words for all that fixes a size or asks for it
            raise CaptureError(f"{type(model).__name__} {_BY_BATCH}") from error
        raise CaptureError(
            f"{type(model).__name__} cannot be captured by torch.{way}{_user_line(error)}: {_first_line(error)}. "
            "Control flow must not depend on the values of a signal: decide it by an attribute or by shapes, or move "
            "the branch out of the model"
        ) from error


def _understood(graph_module: fx.GraphModule, inputs: dict[str, Any]) -> fx.GraphModule:
    """The graph in standard form; refused where a name or an operator is not to be used."""
    graph_module.meta[INTEGERS] = [
        name
        for name, value in inputs.items()
        if isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != torch.uint8  # an image
    ]
    for node in graph_module.graph.nodes:
        if node.op == "placeholder" and node.target in _OPTIONS:
            raise CaptureError(
                f"the model's input {node.target!r} has the name of an option of spiking networks; rename it"
            )
    graph_module = standardize(graph_module).eval()
    dependent = signals(graph_module)
    for node in graph_module.graph.nodes:
        if node.op.startswith("call"):
            rule_of(graph_module, node, dependent)
    return graph_module


def _decisive(errors: dict[str, PolarspikeError]) -> PolarspikeError:
    """Of the errors of both ways the one that says most: an operator by name, the batch size, else why torch.fx failed."""
    named: list[PolarspikeError] = [error for error in errors.values() if isinstance(error, OperatorError)]
    if named or len(errors) == 1:
        return (named or list(errors.values()))[0]
    if _BY_BATCH in str(errors["export"]):
        cause = errors["fx"].__cause__
        return CaptureError(f"{errors['export']}{'' if cause is None else f'; torch.fx stops{_user_line(cause)}'}")
    return CaptureError(f"{errors['fx']}. torch.export does not help: {_first_line(errors['export'])}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@torch.no_grad()
def check_capture(
    model: nn.Module, graph_module: nn.Module, example: Inputs, shared: Collection[str] = frozenset()
) -> None:
    """Show that the graph computes what the model computes: on the example, on another batch and content, on one sample.

    One sample is asked for because torch.export takes a branch on it (``if x.shape[0] == 1``) for one never taken.

    Args:
        model: in evaluation mode; one that itself fails on a single sample is not asked for that.
        graph_module: of it.
        example: inputs of one call.
        shared: the inputs that are the same for all samples, of which another batch has no more rows; nor need an output
            have, which may be one row for each of theirs.

    Raises:
        CaptureError: an output differs, or only the example's batch size can be run.
    """
    reference = copy_model(model).eval()
    size = batch_size(example, shared)
    fixed = "A batch size or shape is fixed somewhere in forward; compute it from x.shape[0] or x.size(0)"
    rows: list[list[int]] = []
    for inputs, label in ((example, "the example"), (other_batch(example, shared), "another batch size and content")):
        args, kwargs = as_call(clone_tensors(inputs))
        try:
            expected = plain_output(reference(*args, **kwargs))
        except Exception as error:
            raise CaptureError(
                f"{type(model).__name__} itself fails on {label} (batch {batch_size(inputs, shared)} where the example had "
                f"{size}): {error}. {fixed}; if an input has no batch dimension, give an example with another batch size "
                "than its length"
            ) from error
        got = _by_graph(graph_module, model, inputs, f"{label} (batch {batch_size(inputs, shared)})", fixed)
        _compare(expected, got, label, _nested(model))
        leaves = [leaf for leaf in pytree.tree_leaves(expected) if isinstance(leaf, Tensor)]
        rows.append([leaf.shape[0] if leaf.dim() > 1 else 0 for leaf in leaves])  # a vector may well be no batch
    constant = {name: len(tensor) for name, tensor in tensors_of(example) if name in shared and tensor.dim()}
    for index, (before, after) in enumerate(zip(*rows, strict=False)):
        if before == after == size and size not in constant.values():  # else the rows may be those of a shared input
            known = f" (taken as the same for all samples: input {', '.join(map(repr, constant))})" if constant else ""
            raise CaptureError(
                f"output {index}: {type(model).__name__} answers {size + 1} samples with {size} rows, as it did for the "
                f"{size} of the example{known}, so samples are mixed up. {fixed}"
            )
    if size > 1:
        _check_alone(model, reference, graph_module, rows_of(example, slice(0, 1), size, shared))


def _by_graph(graph_module: nn.Module, model: nn.Module, inputs: Inputs, label: str, repair: str) -> Any:
    """What the graph answers where its model does."""
    try:
        return graph_module(**clone_tensors(graph_inputs(model, inputs)))
    except Exception as error:
        raise CaptureError(f"the captured graph fails on {label}: {error}. {repair}") from error


def _check_alone(model: nn.Module, reference: nn.Module, graph_module: nn.Module, sample: Inputs) -> None:
    """Whether the graph answers a batch of one as the model does; nothing is said where the model has no such answer."""
    args, kwargs = as_call(clone_tensors(sample))
    try:
        expected = plain_output(reference(*args, **kwargs))
    except Exception:  # whatever a model raises that needs several samples
        return
    if any(isinstance(leaf, Tensor) and bool(leaf.isnan().any()) for leaf in pytree.tree_leaves(expected)):
        return
    label = "the example's first sample alone (batch 1)"
    repair = "forward decides by the batch size; look for x.shape[0] == 1, or squeeze() without a dimension"
    got = _by_graph(graph_module, model, sample, f"{label}, which the model answers", repair)
    _compare(expected, got, label, f". {repair}{_nested(model)}")


@torch.no_grad()
def _check_answer(model: nn.Module, graph_module: nn.Module, example: Inputs, expected: Any) -> None:
    """Whether the graph answers the example as the model did: what is not in it shows here, before sites are placed.

    Raises:
        CaptureError: it fails, or answers something else.
    """
    try:
        got = graph_module(**clone_tensors(graph_inputs(model, example)))
    except Exception as error:
        raise CaptureError(f"the captured graph fails on the example: {error}") from error
    _compare(expected, got, "the example", _nested(model))


def _user_line(error: BaseException) -> str:
    """The last line of the user's own code in a traceback."""
    inner = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(inner)]
    frames = [frame for frame in frames if "<eval_with_key>" not in frame.filename]
    if not frames or frames[-1].name == "<module>":
        return ""
    return f" at {frames[-1].filename}:{frames[-1].lineno} (`{frames[-1].line}`)"


def _nested(model: nn.Module) -> str:
    """What to do where torch's encoder takes its fast path, which answers zeros at padded places and is no graph."""
    for name, part in model.named_modules():
        if isinstance(part, nn.TransformerEncoder) and getattr(part, "use_nested_tensor", False):
            return (
                f". {name or 'the model'} is a TransformerEncoder that turns padded sequences into nested tensors where it "
                "can: build it with enable_nested_tensor=False"
            )
    return ""


def _compare(expected: Any, got: Any, label: str, advice: str = "") -> None:
    want, have = pytree.tree_leaves(expected), pytree.tree_leaves(got)
    if pytree.tree_structure(expected) != pytree.tree_structure(got):
        raise CaptureError(
            f"the captured graph returns another structure than the model on {label}: expected "
            f"{pytree.tree_structure(expected)}, got {pytree.tree_structure(got)}; return tensors in tuples, lists and dicts"
        )
    for index, (left, right) in enumerate(zip(want, have, strict=True)):
        if not isinstance(left, Tensor):
            continue
        if left.shape != right.shape:
            raise CaptureError(
                f"output {index} on {label}: the model gives shape {tuple(left.shape)}, its captured graph "
                f"{tuple(right.shape)}; a batch size or shape is fixed somewhere in forward{advice}"
            )
        left, right = left.double().flatten(), right.double().flatten()
        if bool(left.isnan().any()):
            raise CaptureError(
                f"output {index} on {label}: the model itself answers NaN; look for a division by zero in it"
            )
        scale = float(torch.cat([left[left.isfinite()].abs(), left.new_tensor([1e-30])]).max())
        gap = float(torch.cat([(left - right)[left != right].abs(), left.new_zeros(1)]).max())  # equal Infs are equal
        if not gap <= _TOLERANCE * scale:
            raise GraphMismatchError(
                f"output {index} on {label}: the captured graph differs from the model by {gap:.3g} (outputs reach "
                f"{scale:.3g}). Something in forward is not in the graph: a value fixed while tracing, an in-place "
                f"change of a view, randomness that stays on in eval, or a hook{advice}"
            )
