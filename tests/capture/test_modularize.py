"""Functions become modules: at the path of their weights, with the very same parameters, and what cannot is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import polarspike as ps
from polarspike.capture import capture
from polarspike.errors import OperatorError

X = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.up, self.head = (
            nn.Conv2d(4, 4, 3, 2, 1, groups=2),
            nn.ConvTranspose2d(4, 2, 3, 2, 1, 1),
            nn.Linear(4, 3),
        )
        self.norm, self.group, self.layer = nn.BatchNorm2d(4, eps=1e-3), nn.GroupNorm(2, 4), nn.LayerNorm([8, 8])
        self.rms, self.prelu = nn.RMSNorm(8), nn.PReLU(4)
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4, 1, 1)), nn.Parameter(torch.randn(6))
        self.body = body
        self.norm.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def norm_by_function(n: Net, x: Tensor) -> Tensor:
    return F.batch_norm(x, n.norm.running_mean, n.norm.running_var, n.norm.weight, n.norm.bias, eps=1e-3)


BODIES: dict[str, tuple[Callable[[Any, Tensor], Any], str, type[nn.Module]]] = {
    "convolution": (lambda n, x: F.conv2d(x, n.conv.weight, n.conv.bias, 2, 1, 1, 2), "conv", nn.Conv2d),
    "by keyword": (lambda n, x: F.conv2d(input=x, weight=n.conv.weight, padding=(1, 2), groups=2), "conv", nn.Conv2d),
    "same": (lambda n, x: F.conv2d(x, n.conv.weight, padding="same", groups=2), "conv", nn.Conv2d),
    "transposed": (lambda n, x: F.conv_transpose2d(x, n.up.weight, n.up.bias, 2, 1, 1), "up", nn.ConvTranspose2d),
    "linear": (lambda n, x: F.linear(x.mean((2, 3)), n.head.weight), "head", nn.Linear),
    "own parameters": (lambda n, x: F.conv2d(x, n.weight, n.bias), "conv2d", nn.Conv2d),
    "batch norm": (norm_by_function, "norm", nn.BatchNorm2d),
    "group norm": (lambda n, x: F.group_norm(x, 2, n.group.weight, n.group.bias), "group", nn.GroupNorm),
    "layer norm": (lambda n, x: F.layer_norm(x, [8, 8], n.layer.weight, n.layer.bias), "layer", nn.LayerNorm),
    "rms norm": (lambda n, x: F.rms_norm(x, (8,), n.rms.weight), "rms", nn.RMSNorm),
    "prelu": (lambda n, x: F.prelu(x, n.prelu.weight), "prelu", nn.PReLU),
    "softmax": (lambda n, x: F.softmax(x, dim=1), "softmax", nn.Softmax),
    "gelu": (lambda n, x: F.gelu(x, approximate="tanh"), "gelu", nn.GELU),
    "relu6": (lambda n, x: F.hardtanh(x, 0.0, 6.0), "hardtanh", nn.ReLU6),
    "elu": (lambda n, x: F.elu(x, 0.5), "elu", nn.ELU),
}


@pytest.mark.parametrize("route", ["fx", "export"])
@pytest.mark.parametrize("name", BODIES)
def test_a_function_becomes_the_module_of_its_weights(name: str, route: Any) -> None:
    body, path, kind = BODIES[name]
    model = Net(body).eval()
    network = capture(model, X, route)
    (called,) = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    module = network.get_submodule(called)
    assert type(module) is kind and (called == path or name in ("relu6", "elu", "gelu", "softmax"))
    torch.testing.assert_close(network(X), model(X), rtol=1e-5, atol=1e-6)
    own = dict(model.named_parameters())
    for tensor in module.parameters():
        assert any(tensor.shape == other.shape and torch.equal(tensor, other) for other in own.values())


def test_parameters_that_two_functions_read_stay_one() -> None:
    def body(n: Net, x: Tensor) -> Tensor:
        y = F.relu(F.conv2d(x, n.weight, n.bias))
        return F.conv2d(x, n.weight, n.bias, stride=2).mean() + y.mean()

    network = capture(Net(body), X)
    convolutions = [str(node.target) for node in network.graph.nodes if "conv" in str(node.target)]
    assert len(convolutions) == len(set(convolutions)) == 2
    one, other = (network.get_submodule(path) for path in convolutions)
    assert one.weight is other.weight and one.bias is other.bias


def test_one_module_called_twice_stays_one_and_trains_once() -> None:
    def body(n: Net, x: Tensor) -> Tensor:
        y = F.conv2d(x, n.conv.weight, n.conv.bias, 2, 1, 1, 2)
        return n.head(F.relu(y).mean((2, 3))) + n.head(n.conv(x).mean((2, 3)))

    for route in ("fx", "export"):
        network = capture(Net(body), X, route)  # type: ignore[arg-type]
        assert [name for name, _ in network.named_parameters() if "conv" in name] == ["conv.weight", "conv.bias"]


def test_weights_that_are_signals_stay_functions() -> None:
    def body(n: Net, x: Tensor) -> Tensor:
        return F.linear(F.relu(x), n.head.weight[:, :1] * x.mean() + torch.zeros(3, 8))

    network = capture(Net(body), X)
    assert any(node.target is F.linear for node in network.graph.nodes)


def test_dropout_that_follows_the_mode_becomes_a_module_and_other_dropout_is_refused() -> None:
    class Drop(Net):
        def forward(self, x: Tensor) -> Any:
            return self.head(F.dropout(F.relu(x).mean((2, 3)), 0.5, training=self.training))

    qann = ps.quantize(Drop(lambda n, x: x), ps.QuantSpec(), example=X)
    assert [type(part).__name__ for part in qann.modules() if "Dropout" in type(part).__name__] == ["Dropout"]
    for function in (F.dropout, F.dropout2d, F.alpha_dropout):
        active = function is F.alpha_dropout
        if active:  # off by default
            capture(Net(lambda n, x: n.conv(F.alpha_dropout(F.relu(x)))), X)
        with pytest.raises(OperatorError, match=r"test_modularize.py.*stays random in evaluation mode; pass training="):
            capture(Net(lambda n, x, f=function: n.conv(f(F.relu(x), training=True))), X)


def calls(network: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in network.graph.nodes if node.op == "call_module"]


def test_a_frozen_norm_in_the_middle_of_training_keeps_its_mode() -> None:
    model = Net(lambda n, x: n.conv(F.relu(n.norm(x)))).train()
    model.norm.eval()
    for route in ("fx", "export"):
        qann = ps.quantize(model, ps.QuantSpec(), example=X, route=route)  # type: ignore[arg-type]
        assert qann.training and not qann.network.get_submodule("norm").training


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "norm": lambda n, x, mode: F.batch_norm(
        x, n.norm.running_mean, n.norm.running_var, n.norm.weight, n.norm.bias, mode
    ),
    "norm, by keyword": lambda n, x, mode: F.batch_norm(x, n.norm.running_mean, n.norm.running_var, training=mode),
    "dropout": lambda n, x, mode: F.dropout(x, 0.5, mode),
    "dropout of channels, by keyword": lambda n, x, mode: F.dropout2d(x, p=0.5, training=mode),
    "dropout in place": lambda n, x, mode: F.dropout(x + 1, 0.5, mode, True),
    "dropout of torch": lambda n, x, mode: torch.dropout(x, 0.5, mode),
}


#: How forward asks for the mode of its module.
MODES: dict[Any, Callable[[Any], bool]] = {
    "self": lambda n: n.training,
    "a branch": lambda n: True if n.training else n.norm.running_mean is None,  # as torch's own norms have it
    "a bool": lambda n: bool(n.training),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("mode", [*MODES, False])
@pytest.mark.parametrize("training", [True, False])
def test_what_is_off_whatever_the_mode_stays_off(name: str, mode: Any, training: bool) -> None:
    """The network is the model in both modes, whichever it was quantized in."""

    class Moded(Net):
        def forward(self, x: Tensor) -> Any:
            x = FUNCTIONS[name](self, x, MODES[mode](self) if mode in MODES else mode)
            return self.head(F.relu(self.conv(x)).mean((2, 3)))

    torch.manual_seed(0)
    model = Moded(lambda n, x: x).train(training)
    model.norm.running_mean += 0.5
    qann = ps.quantize(model, ps.QuantSpec(), example=X)
    assert qann.training is training
    for now in (True, False, True):
        x = torch.randn(5, *X.shape[1:])
        model.train(now)
        qann.train(now)
        with qann.float_activations():
            torch.manual_seed(1)
            expected = model(x)
            torch.manual_seed(1)
            torch.testing.assert_close(qann(x), expected)


def test_a_model_that_cannot_be_traced_in_training_mode_is_captured_all_the_same() -> None:
    class Choosing(Net):
        def forward(self, x: Tensor) -> Any:
            if self.training:
                raise RuntimeError("not here")
            return self.head(F.dropout(F.relu(self.conv(x)), 0.5, False).mean((2, 3)))

    assert isinstance(capture(Choosing(lambda n, x: x).eval(), X), fx.GraphModule)


def test_a_norm_with_the_code_of_those_of_torch_goes_on_learning() -> None:
    class Norm(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            if self.training and self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            of_batch = True if self.training else (self.running_mean is None and self.running_var is None)
            return F.relu(
                F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, of_batch, 0.1, self.eps)
            )

    model = nn.Sequential(nn.Conv2d(4, 4, 3), Norm(4), nn.Conv2d(4, 2, 3)).train()
    model[1].forward = model[1].forward  # traced into, as a class of another library is
    counted = int(model[1].num_batches_tracked)
    qann = ps.quantize(model, ps.QuantSpec(), example=X)
    assert int(model[1].num_batches_tracked) == counted and qann.frozen == ()
    qann.train()
    with qann.float_activations():
        torch.testing.assert_close(qann(X), model(X))
        torch.testing.assert_close(qann.eval()(X), model.eval()(X))


@pytest.mark.parametrize("route", ["fx", "export"])
def test_a_norm_that_is_always_of_its_batch_is_refused(route: Any) -> None:
    def body(n: Net, x: Tensor) -> Tensor:
        return n.conv(F.batch_norm(x, n.norm.running_mean, n.norm.running_var, training=True))

    with pytest.raises(OperatorError, match=r"called with training=True .* pass running statistics and training=self"):
        capture(Net(body), X, route)
