"""What cannot be captured is refused with its place, its line and a remedy: control flow, batch sizes, examples, models."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.errors import CaptureError, InputError
from tests.captured import SPEC, Body, Net, X, quantize


def line_of(function: Callable[..., Any], text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return next(first + index for index, line in enumerate(lines) if text in line)


def branching(n: Net, x: Tensor) -> Tensor:
    if x.sum() > 0:
        x = -x
    return n.score(torch.relu(n.one(x)))


def test_control_flow_on_values_names_the_line() -> None:
    line = line_of(branching, "if x.sum()")
    with pytest.raises(
        CaptureError,
        match=rf"Net cannot be captured by torch.fx at .*test_graph_refusals.py:{line} .*Control flow must not depend",
    ):
        quantize(Net(branching))


def fixed_in_the_model(n: Net, x: Tensor) -> Tensor:
    return n.head(torch.relu(n.one(x)).view(4, 4, -1).mean(2))


def fixed_and_failing(n: Net, x: Tensor) -> Tensor:
    return n.score(torch.relu(n.one(x)).view(4, 4, 8, 8))


class FixedWhileTracing(Net):
    """The batch size of the first call, kept as a number."""

    size: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        size = len(x) if not isinstance(x, torch.fx.Proxy) else 4
        return self.score(torch.relu(self.one(x)).view(size, 4, 8, 8))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net(fixed_in_the_model), "answers 5 samples with 4 rows"),
        (Net(fixed_and_failing), "itself fails on another batch size and content .batch 5 where the example had 4"),
        (FixedWhileTracing(), "the captured graph fails on another batch size and content .batch 5"),
    ],
    ids=["mixes samples", "model fails", "graph fails"],
)
def test_a_fixed_batch_size_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(CaptureError, match=rf"{message}.*compute it from x.shape\[0\]"):
        quantize(model)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (X * float("nan"), "expected finite values, got NaN or Inf"),
        (X / 0.0, "expected finite values, got NaN or Inf"),
        (X.to(torch.complex64), "expected real numbers, got torch.complex64"),
        (X.to_sparse(), r"expected a dense tensor, got torch.sparse_coo; call x.to_dense\(\)"),
        (X[:, :1], r"Net itself fails on the example input \('0': \(4, 1, 8, 8\)\): .* to have 3 channels"),
        (X.double(), "Net itself fails on the example input"),
        (X[:0], "got an empty batch"),
        (torch.tensor(1.0), "at least one input tensor with a batch dimension"),
        (X.numpy(), "at least one input tensor with a batch dimension"),
        ({"y": X}, "Net itself fails on the example input .*'y'"),
        (None, "at least one input tensor"),
    ],
    ids=["nan", "inf", "complex", "sparse", "channels", "type", "empty", "scalar", "numpy", "name", "none"],
)
def test_an_example_that_does_not_fit_is_refused(example: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantize(Net(), example)


def test_a_parameter_that_is_not_finite_is_named() -> None:
    model = Net()
    with torch.no_grad():
        model.two.weight[0, 0] = torch.nan
    with pytest.raises(
        CaptureError, match=r"'two.weight': expected finite values, got 9 NaN or Inf of 144; load a sound"
    ):
        quantize(model)
    model = Net()
    model.norm.running_var.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(CaptureError, match=r"'norm.running_var': expected finite values, got 4"):
        quantize(model)


def test_what_is_no_model_or_cannot_be_copied_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"expected a torch.nn.Module or an exported program, got function"):
        quantize(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match=r"'0.weight' has no values yet .a lazy module.; call the model once"):
        quantize(nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()))
    with torch.device("meta"):
        bodiless = Net()
    with pytest.raises(CaptureError, match=r"'\w+.weight' has no values .device 'meta'.; load its weights first"):
        quantize(bodiless)
    model = Net()
    model.body = (value for value in ())  # type: ignore[assignment]
    with pytest.raises(CaptureError, match="Net cannot be copied: cannot pickle 'generator' object"):
        quantize(model)


@dataclass
class Scores:
    scores: Tensor


class Plain:
    def __init__(self, scores: Tensor) -> None:
        self.scores = scores


@pytest.mark.parametrize("kind", [Scores, Plain])
@pytest.mark.parametrize("route", ["auto", "export"])
def test_an_answer_in_an_object_of_the_models_own_is_refused(kind: Callable[[Tensor], Any], route: Any) -> None:
    says = (
        rf"Net answers with an object of {kind.__name__}, expected tensors in tuples, .* fields that you need as a dict"
    )
    for body in (lambda n, x: kind(n.score(n.one(x))), lambda n, x: (x, {"a": [kind(n.score(n.one(x)))]})):
        with pytest.raises(CaptureError, match=says):
            ps.quantize(Net(body), SPEC, example=X, route=route)


def test_an_object_inside_of_a_model_is_no_answer() -> None:
    qann = quantize(Net(lambda n, x: (n.score(torch.relu(Scores(n.one(x)).scores)), None, "scores")))
    assert len(qann.sites()) == 1


def test_a_torchscript_module_is_refused_with_what_is_needed() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has deprecated it
        scripted, traced = torch.jit.script(body), torch.jit.trace(body, X)
    says = r"is a TorchScript module, .*; expected the nn.Module that it was made from"
    for model, where in (
        (scripted, "the model"),
        (traced, "the model"),
        (nn.Sequential(traced, nn.ReLU()), "module '0'"),
    ):
        with pytest.raises(CaptureError, match=f"^{where} {says}"):
            quantize(model)


def compared(n: Net, x: Tensor) -> Tensor:
    y = n.score(n.one(x))
    return y if x.shape[0] > 4 else y + 1


def stacked(n: Net, x: Tensor) -> Tensor:
    return torch.stack([n.score(n.one(x))[i] for i in range(len(x))])


@pytest.mark.parametrize("body", [compared, stacked])
def test_a_forward_that_decides_by_the_batch_size_is_told_so(body: Body) -> None:
    says = r"^Net decides by the batch size, or fixes it .*; move the branch out of the model"
    with pytest.raises(
        CaptureError, match=says + r"; torch\.fx stops at .*test_graph_refusals\.py:\d+ \(`return .*`\)$"
    ):
        quantize(Net(body))
    with pytest.raises(CaptureError, match=says + "$"):
        ps.quantize(Net(body), SPEC, example=X, route="export")


def test_a_part_called_by_a_word_of_python_is_refused() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"if": nn.Conv2d(3, 4, 3), "then": nn.ReLU(), "else": nn.Conv2d(4, 4, 1)})

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["else"](self.parts["then"](self.parts["if"](x)))

    with pytest.raises(
        CaptureError,
        match=r"'parts.if': a part of the model has a name that Python or torch keeps",
    ):
        quantize(Named())
