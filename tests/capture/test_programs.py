"""Exported programs are models: a program, and the module that it makes of itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

import polarspike as ps
from polarspike.capture import capture
from polarspike.capture.programs import input_sizes, model_of
from polarspike.errors import CaptureError
from tests.captured import SPEC, Net, X

BATCH = {0: Dim("batch")}
FORMS: list[Callable[[ExportedProgram], Any]] = [
    lambda program: program,
    lambda program: program.module(),
    lambda program: program.module(check_guards=False),
    lambda program: copy.deepcopy(program.module()),
]


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def program(net: Net) -> ExportedProgram:
    return export(net, (X,), dynamic_shapes={"x": BATCH})


@pytest.mark.parametrize("form", FORMS)
def test_a_program_is_quantized_as_its_model(form: Callable[[ExportedProgram], Any], program: ExportedProgram) -> None:
    given = form(program)
    before = dict(vars(given))
    qann = ps.quantize(given, SPEC, example=X)
    assert len(qann.sites()) == 2 and not qann.training
    assert list(ps.inspect(given, SPEC, X).sites) == list(ps.inspect(program, SPEC, X).sites)
    assert vars(given).keys() == before.keys()  # left untouched
    ps.calibrate(qann, [X])
    snn = ps.convert(qann)
    assert ps.verify(qann, snn, [X], timesteps=1).exact


def test_a_program_computes_what_its_model_does(net: Net, program: ExportedProgram) -> None:
    with torch.no_grad():
        for network in (model_of(program), capture(program, X), ps.equalize(program.module(), X)):
            for size in (1, 3):
                torch.testing.assert_close(network(X[:size]), net(X[:size]))
    assert capture(program, X).meta["route"] == "export; torch.fx: an exported program has no modules to trace"
    assert input_sizes(model_of(program))["x"][1:] == [3, 8, 8]
    assert model_of(net) is net and input_sizes(net) == {}


@pytest.mark.parametrize("form", FORMS)
def test_a_fixed_batch_size_is_refused(form: Callable[[ExportedProgram], Any], net: Net) -> None:
    given = form(export(net, (X,)))
    says = (
        r"input 'x' has the fixed shape \(4, 3, 8, 8\), expected a free batch size: export it again with dynamic_shapes"
    )
    tries: list[Callable[[], Any]] = [
        lambda: ps.quantize(given, SPEC, example=X),
        lambda: ps.inspect(given, SPEC, X),
        lambda: ps.equalize(given, X),
    ]
    for attempt in tries:
        with pytest.raises(CaptureError, match=says):
            attempt()


class Masked(nn.Module):
    """Several inputs, one by keyword, and one that is the same for all samples."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, mask: Tensor, *, shift: Tensor) -> dict[str, Tensor]:
        return {"y": self.head(mask @ torch.relu(self.linear(x) + shift))}


def test_a_program_of_several_inputs() -> None:
    model = Masked().eval()
    inputs = {"x": torch.randn(3, 5, 6), "mask": torch.rand(5, 5), "shift": torch.randn(3, 1, 6)}
    program = export(model, (), inputs, dynamic_shapes={"x": BATCH, "mask": None, "shift": BATCH})
    for given in (program, program.module()):
        qann = ps.quantize(given, SPEC, example=inputs)
        with torch.no_grad(), qann.float_activations():
            torch.testing.assert_close(qann(**inputs)["y"], model(**inputs)["y"])


class Calling(nn.Module):
    """A model that calls an overload itself, and keeps a part in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.ops.aten.relu.default(self.norm(self.conv(x))))


def test_a_traced_model_that_calls_an_overload_is_no_program() -> None:
    model = torch.fx.symbolic_trace(Calling())
    assert model_of(model) is model
    qann = ps.quantize(model, SPEC, example=X)
    assert qann.training and qann.network.get_submodule("norm").training
    assert all(part.training for part in model.modules())
    assert "an exported program" not in qann.network.meta["route"]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, torch.relu, torch.neg, (x,))


def test_a_program_shares_weights_but_no_module(program: ExportedProgram) -> None:
    for given in (program.module(), export(Branching(), (X,), dynamic_shapes={"x": BATCH}).module()):
        before = {name: part.training for name, part in given.named_modules()}
        made = model_of(given)
        assert {name: part.training for name, part in given.named_modules()} == before
        assert not made.training and not {*made.modules()} & {*given.modules()}
        assert all(own is other for own, other in zip(made.parameters(), given.parameters(), strict=True))
        assert model_of(made) is made  # quantize and capture both ask
