"""A graph that computes something else than its model is found: hooks, writes in place, random numbers, own forwards."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polarspike.capture import check_capture
from polarspike.errors import CaptureError, GraphMismatchError, OperatorError
from tests.captured import Body, Net, X, quantize


def test_a_changed_graph_is_found() -> None:
    model = Net().eval()
    qann = quantize(model)
    with qann.float_activations():
        check_capture(model, qann, X)
        with torch.no_grad():
            qann.network.get_parameter("head.bias")[0] += 1e-3
        with pytest.raises(
            GraphMismatchError, match="output 0 on the example: the captured graph differs from the model by"
        ):
            check_capture(model, qann, X)


def sine(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return torch.sin(output)


@pytest.mark.parametrize("part", ["", "one", "relu", "head", "norm"])
def test_a_hook_that_changes_an_output_is_refused(part: str) -> None:
    model = Net()
    model.get_submodule(part).register_forward_hook(sine)
    with pytest.raises(CaptureError, match=r"captured graph differs from the model by .* or a hook"):
        quantize(model)


@pytest.mark.parametrize("part", ["", "one", "relu"])
def test_a_hook_that_changes_an_input_is_refused(part: str) -> None:
    model = Net()
    model.get_submodule(part).register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    with pytest.raises(GraphMismatchError, match="captured graph differs"):
        quantize(model)


def random_in_eval(n: Net, x: Tensor) -> Tensor:
    return n.score(torch.relu(n.one(x)) * torch.rand(1))


def read_through_a_view(n: Net, x: Tensor) -> Tensor:
    x = n.one(x)
    flat = x.view(x.size(0), -1)
    y = flat.mul_(2.0)
    return n.score(torch.relu(x)) + y.sum()


class Counting(Net):
    """Its output depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1.0
        return self.score(torch.relu(self.one(x))) * self.calls


def read_by_another_name(n: Net, x: Tensor) -> Tensor:
    x = n.one(x)
    y = x
    x += 1.0  # also changes y, which torch.fx does not show
    return n.score(torch.relu(x) + y)


def stored(n: Net, x: Tensor) -> Tensor:
    x = torch.relu(n.one(x))
    x[:, 0] = 0.0
    return n.score(x)


def unread_through_a_view(n: Net, x: Tensor) -> Tensor:
    x = n.one(x)
    x.view(x.size(0), -1).relu_()
    return n.score(x)


WRITING = [read_through_a_view, read_by_another_name, stored, unread_through_a_view]


def test_random_numbers_in_evaluation_are_refused() -> None:
    with pytest.raises(OperatorError, match=r"no rule for torch.rand: it stays random in evaluation mode"):
        quantize(Net(random_in_eval))


def test_what_depends_on_earlier_calls_is_refused() -> None:
    with pytest.raises(CaptureError, match="on another batch size and content: the captured graph differs from"):
        quantize(Counting())


@pytest.mark.parametrize("body", WRITING)
def test_writes_that_torch_fx_does_not_see_are_captured_by_export(body: Body) -> None:
    model = Net(body).eval()
    qann = quantize(model).eval()
    assert str(qann.network.meta["route"]).startswith("export")
    with torch.no_grad(), qann.float_activations():
        torch.testing.assert_close(qann(X), model(X))


def viewed_before(n: Net, x: Tensor) -> Tensor:
    x = n.one(x)
    flat = x.flatten(2)
    x.relu_()
    return n.head(flat.mean(2))


def test_a_change_that_only_a_view_shows_is_refused() -> None:
    with pytest.raises(
        OperatorError,
        match=r"test_graph_check.py.*relu_\(\).*: Tensor.relu_ alters memory in place .*test_graph_check.py.* write y = f",
    ):
        quantize(Net(viewed_before))


def test_a_result_written_into_a_given_tensor_is_refused() -> None:
    def body(n: Net, x: Tensor) -> Tensor:
        x = torch.relu(n.one(x))
        return n.score(torch.add(x, x, out=x))

    with pytest.raises(OperatorError, match=r"torch.add writes into out=; use its result instead"):
        quantize(Net(body))


def test_a_forward_of_one_object_is_traced_into() -> None:
    model = Net(lambda n, x: n.score(n.relu(n.one(x)))).eval()
    model.relu.forward = lambda x: 2 * torch.relu(x) - 1  # type: ignore[method-assign]
    qann = quantize(model).eval()
    with qann.float_activations():
        torch.testing.assert_close(qann(X), model(X))
    model.forward = lambda x: model.score(torch.relu(model.one(x)))  # type: ignore[method-assign]
    with pytest.raises(CaptureError, match="captured graph differs from the model"):
        quantize(model)


def test_a_model_that_answers_nan_or_another_structure_is_refused() -> None:
    def quotient(n: Net, x: Tensor) -> Tensor:
        x = torch.relu(n.one(x))
        return x * float("inf") * 0.0

    with pytest.raises(CaptureError, match="output 0 on the example: the model itself answers NaN"):
        quantize(Net(quotient))
    ordered = quantize(Net(lambda n, x: OrderedDict(y=torch.relu(n.one(x))))).eval()
    with ordered.float_activations():
        assert type(ordered(X)) is dict and list(ordered(X)) == ["y"]  # plain containers
    infinite = quantize(Net(lambda n, x: torch.relu(n.one(x)) - torch.tensor(torch.inf)))
    assert infinite.sites()


def doubled_alone(n: Net, x: Tensor) -> Tensor:
    y = n.score(torch.relu(n.one(x)))
    return y * 2.0 if x.shape[0] == 1 else y


def squeezed_alone(n: Net, x: Tensor) -> Tensor:
    y = n.score(torch.relu(n.one(x)))
    return y[0] if x.shape[0] == 1 else y


def test_a_branch_for_one_sample_is_refused() -> None:
    with pytest.raises(
        GraphMismatchError, match=r"output 0 on the example's first sample alone \(batch 1\): .* differs"
    ):
        quantize(Net(doubled_alone))
    with pytest.raises(
        CaptureError, match=r"gives shape \(5,\), its captured graph \(1, 5\).* decides by the batch size"
    ):
        quantize(Net(squeezed_alone))


def refused_alone(n: Net, x: Tensor) -> Tensor:
    if x.shape[0] == 1:
        raise ValueError("expected several samples")
    return n.score(torch.relu(n.one(x)))


def undefined_alone(n: Net, x: Tensor) -> Tensor:
    y = n.score(torch.relu(n.one(x)))
    return y * float("nan") if x.shape[0] == 1 else y


@pytest.mark.parametrize("body", [refused_alone, undefined_alone])
def test_a_model_that_has_no_answer_to_one_sample_is_not_asked_for_it(body: Body) -> None:
    assert quantize(Net(body)).sites()


class Masked(Net):
    """A bias that is the same for all samples, and has as many rows as the example."""

    def forward(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.one(x))
        return self.score(y), (y.flatten(2)[:, :, :4] @ bias).mean()


def test_one_sample_keeps_what_is_the_same_for_all() -> None:
    for model, example in ((Masked(), (X, torch.randn(4, 4))), (Masked(), {"x": X, "bias": torch.randn(4, 4)})):
        assert quantize(model, example).sites()
