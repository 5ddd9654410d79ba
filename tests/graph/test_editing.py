"""A faithful capture: the model is left alone, and the graph in its copy knows modules, inputs, signals and outputs."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import polarspike as ps
from polarspike.capture import capture, graph_inputs
from polarspike.errors import PolarspikeWarning
from polarspike.graph.editing import free_path, scope_of, signals
from tests.captured import SPEC, Net, X, quantize


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
    with pytest.warns(PolarspikeWarning) if wrap is pruned else contextlib.nullcontext():
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


def test_a_hook_that_only_looks_is_left_out_of_the_copy() -> None:
    model, seen = Net(), []
    model.one.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    qann = quantize(model)
    seen.clear()
    ps.calibrate(qann, [X])
    assert seen == []
    model(X)
    assert len(seen) == 1


def test_an_input_without_batch_dimension_is_no_obstacle() -> None:
    class Scaled(Net):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
            return self.score(torch.relu(self.one(x + scale)))

    quantize(Scaled(), (X, torch.rand(3, 1, 1)))


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
