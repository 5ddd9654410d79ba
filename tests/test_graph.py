"""Capture: what the graph must compute, what leaves the model untouched, and what is refused with place and remedy."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import polarspike as ps
from polarspike.capture import capture, check_capture, graph_inputs
from polarspike.errors import CaptureError, InputError, OperatorError
from polarspike.graph import free_path, scope_of, signals

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SPEC = ps.QuantSpec(negative=3, positive=5)
Body = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    def __init__(self, body: Body | None = None) -> None:
        super().__init__()
        self.one, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.two, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.drop = nn.Dropout(0.5)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        if self.body is not None:
            return self.body(self, x)
        return self.score(self.relu(self.two(self.drop(self.relu(self.norm(self.one(x)))))))

    def score(self, x: Tensor) -> Tensor:
        return self.head(x.mean([2, 3]))


def quantize(model: nn.Module, example: Any = X) -> ps.QuantizedNetwork:
    return ps.quantize(model, SPEC, example=example)


def line_of(function: Callable[..., Any], text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return next(first + index for index, line in enumerate(lines) if text in line)


# --- the model is left alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_model_the_example_and_the_random_state_are_untouched(training: bool) -> None:
    model = Net().train(training)
    model.drop.eval()  # a mode of its own
    seen: list[int] = []
    model.one.register_forward_hook(lambda module, inputs, output: seen.append(1))
    modes = {name: part.training for name, part in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    pointers = {name: value.data_ptr() for name, value in model.state_dict().items()}
    example, random = X.clone(), torch.get_rng_state()
    qann = quantize(model, example)
    ps.inspect(model, SPEC, example)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(example, X)
    assert {name: part.training for name, part in model.named_modules()} == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) and value.data_ptr() == pointers[name]
    assert all(value.grad is None for value in model.parameters())
    assert len(model.one._forward_hooks) == 1 and not qann.network.one._forward_hooks  # type: ignore[union-attr]
    assert qann.training is training
    assert not {v.data_ptr() for v in qann.state_dict().values()} & set(pointers.values())


def weight_norm(module: nn.Module) -> None:
    parametrizations.weight_norm(module)


def old_weight_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(module)  # its weight is a computed tensor, which deepcopy refuses


def spectral_norm(module: nn.Module) -> None:
    parametrizations.spectral_norm(module)


def old_spectral_norm(module: nn.Module) -> None:
    torch.nn.utils.spectral_norm(module)


def pruned(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight", 0.5)


@pytest.mark.parametrize("wrap", [weight_norm, old_weight_norm, spectral_norm, old_spectral_norm, pruned])
@pytest.mark.parametrize("training", [True, False])
def test_computed_weights_are_frozen_in_the_copy_alone(wrap: Callable[[nn.Module], None], training: bool) -> None:
    model = Net().train(training)
    wrap(model.one)
    wrap(model.head)
    model(X).sum().backward()
    names, kind = set(model.state_dict()), type(model.one)
    qann = quantize(model)
    assert set(model.state_dict()) == names and type(model.one) is kind
    assert isinstance(qann.network.get_parameter("one.weight"), nn.Parameter)
    model(X).sum().backward()  # still works, still computes its weight from its own parameters
    assert model.one.weight.grad_fn is not None
    with qann.float_activations():
        frozen = qann.network.get_parameter("one.weight").detach().clone()
        qann.train()(X)  # no power iteration any more
        assert torch.equal(frozen, qann.network.get_parameter("one.weight"))


def test_a_model_with_gradients_and_frozen_parts_is_copied_as_it_is() -> None:
    model = Net()
    model.one.weight.requires_grad_(False)
    model(X).sum().backward()
    qann = quantize(model)
    assert not qann.network.get_parameter("one.weight").requires_grad
    assert qann.network.get_parameter("head.weight").requires_grad


# --- the graph computes what the model computes --------------------------------------------------------------------------


def test_the_nodes_know_their_module_and_the_inputs_their_names() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Net(lambda n, x: n.score(torch.relu(n.one(x))))

        def forward(self, x: Tensor, flag: bool = True, none: None = None) -> Tensor:
            return self.inner(x) if flag else x

    model = Outer()
    network = capture(model, X)
    relu, mean = (next(node for node in network.graph.nodes if node.name == name) for name in ("inner_relu", "mean"))
    assert (relu.target, scope_of(relu), scope_of(mean)) == ("inner.relu", "inner.relu", "inner")
    assert list(graph_inputs(model, X)) == ["x", "flag", "none"]
    assert [node.target for node in network.graph.nodes if node.op == "placeholder"] == ["x", "flag", "none"]
    assert free_path(network, "inner.one") == "inner.one_1" and free_path(network, "inner.new") == "inner.new"


def test_signals_are_what_depends_on_the_values_of_an_input() -> None:
    class Sized(Net):
        def forward(self, x: Tensor) -> Tensor:
            constant = self.head.bias * 2
            return torch.relu(self.one(x)).view(x.shape[0], -1)[:, :5] + constant

    network = capture(Sized(), X)
    names = {node.name for node in signals(network)}
    assert {"x", "one", "relu_1", "view"} <= names
    assert not {"mul", "head_bias", "getattr_1"} & names


def test_a_changed_graph_is_found() -> None:
    model = Net().eval()
    qann = quantize(model)
    with qann.float_activations():
        check_capture(model, qann, X)
        with torch.no_grad():
            qann.network.get_parameter("head.bias")[0] += 1e-3
        with pytest.raises(CaptureError, match="output 0 on the example: the captured graph differs from the model by"):
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
    with pytest.raises(CaptureError, match="captured graph differs"):
        quantize(model)


def test_a_hook_that_only_looks_is_left_out_of_the_copy() -> None:
    model, seen = Net(), []
    model.one.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    qann = quantize(model)
    seen.clear()
    ps.calibrate(qann, [X])
    assert seen == []
    model(X)
    assert len(seen) == 1


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


BODIES = [random_in_eval]
WRITING = [read_through_a_view, read_by_another_name, stored, unread_through_a_view]


@pytest.mark.parametrize(
    "model", [*map(Net, BODIES), Counting()], ids=[*(body.__name__ for body in BODIES), "counting"]
)
def test_what_is_not_in_the_graph_is_refused(model: nn.Module) -> None:
    with pytest.raises(
        ps.PolarspikeError,
        match=r"captured graph differs from the model|cannot be captured|no rule for|alters memory in place",
    ):
        quantize(model)


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
        match=r"test_graph.py.*relu_\(\).*: Tensor.relu_ alters memory in place .*test_graph.py.* write y = f",
    ):
        quantize(Net(viewed_before))


def test_a_result_written_into_a_given_tensor_is_refused() -> None:
    def body(n: Net, x: Tensor) -> Tensor:
        x = torch.relu(n.one(x))
        return n.score(torch.add(x, x, out=x))

    with pytest.raises(OperatorError, match=r"torch.add writes into out=; use its result instead"):
        quantize(Net(body))


# --- refusals: place, line, remedy ---------------------------------------------------------------------------------------


def branching(n: Net, x: Tensor) -> Tensor:
    if x.sum() > 0:
        x = -x
    return n.score(torch.relu(n.one(x)))


def test_control_flow_on_values_names_the_line() -> None:
    line = line_of(branching, "if x.sum()")
    with pytest.raises(
        CaptureError,
        match=rf"Net cannot be captured by torch.fx at .*test_graph.py:{line} .*Control flow must not depend",
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


def test_an_input_without_batch_dimension_is_no_obstacle() -> None:
    class Scaled(Net):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
            return self.score(torch.relu(self.one(x + scale)))

    quantize(Scaled(), (X, torch.rand(3, 1, 1)))


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
    with pytest.raises(CaptureError, match=r"expected a torch.nn.Module, got function"):
        quantize(lambda x: x)  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match=r"'0.weight' has no values yet .a lazy module.; call the model once"):
        quantize(nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()))
    model = Net()
    model.body = (value for value in ())  # type: ignore[assignment]
    with pytest.raises(CaptureError, match="Net cannot be copied: cannot pickle 'generator' object"):
        quantize(model)


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


@pytest.mark.parametrize(
    "output", [lambda y: (y, y), lambda y: [y], lambda y: {"a": y, "b": {"c": y}}, lambda y: (y, None, 2)]
)
def test_any_structure_of_outputs(output: Callable[[Tensor], Any]) -> None:
    def body(n: Net, x: Tensor) -> Any:
        return output(n.score(F.relu(n.one(x))))

    model = Net(body).eval()
    qann = quantize(model).eval()
    with qann.float_activations():
        torch.testing.assert_close(qann(X), model(X))
