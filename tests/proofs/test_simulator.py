"""The event-by-event simulator against the spiking network: same codes, same output, and it can tell them apart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from polarspike.conversion import convert
from polarspike.errors import InputError, OperatorError, SpecError
from polarspike.proofs import circuit
from polarspike.proofs.simulator import Simulation, simulate
from polarspike.quantization import quantize
from polarspike.specs import QuantSpec
from polarspike.spiking import SpikingNetwork

pytestmark = pytest.mark.slow  # a simulation of every spike

UNSIGNED = QuantSpec(negative=0, positive=4)
SIGNED = QuantSpec(negative=2, positive=3, gain=0.3, signed="all")
LEARNED = QuantSpec(negative=3, positive=4, gain="learned", signed="all")
CHANNELS = QuantSpec(negative=2, positive=4, gain=0.3, signed="all", granularity="channel")


class Plain(nn.Module):
    """Batch norm, max pooling of spikes and average pooling of spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv3, self.norm3 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(x)))
        x = functional.relu(self.norm2(self.conv2(functional.max_pool2d(x, 3, 2, padding=1))))
        x = functional.relu(self.norm3(self.conv3(functional.avg_pool2d(x, 2))))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    """Two sums of branches, one with a projection; a max pooling that reads the sum of two sites is graded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.one, self.two = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.down, self.side = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Conv2d(6, 8, 1, stride=2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.one(x))
        x = functional.max_pool2d(x + y, 2, stride=1)
        x = x + torch.relu(self.two(x))
        x = torch.relu(self.down(x) + self.side(x) * 0.5)
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    """Concatenation: comparators over two sites whose steps differ by channel, and explicit padding before pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 4, 5, padding=2)
        self.act = nn.LeakyReLU(0.2)
        self.pool, self.again = nn.MaxPool2d(2), nn.MaxPool2d(2, stride=1)
        self.mix, self.head = nn.Conv2d(7, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.cat([self.act(self.left(x)), torch.relu(self.right(x))], dim=1)
        x = self.again(functional.pad(self.pool(x), (1, 0, 0, 1)))
        x = torch.relu(self.mix(x))
        return self.head(x.mean((2, 3))), {"map": x}


class Analog(nn.Module):
    """Max pooling of a convolution's sums, and of two sites across which one window would mix steps."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(functional.max_pool1d(self.one(x), 2))
        b = torch.relu(self.two(a))
        mixed = functional.max_pool1d(torch.cat([a, b], dim=2), 3, stride=2, ceil_mode=True)
        return self.head(mixed[:, :, :5].flatten(1))


def mlp() -> nn.Module:
    layers = nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)
    return nn.Sequential(*layers)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (10,)),
    "plain": (Plain, (1, 8, 8)),
    "residual": (Residual, (2, 6, 6)),
    "branches": (Branches, (1, 8, 8)),
    "analog": (Analog, (1, 10)),
}
CASES = [
    *((name, spec) for name in MODELS if name != "branches" for spec in (UNSIGNED, SIGNED)),
    *((name, spec) for name in ("plain", "branches", "residual") for spec in (LEARNED, CHANNELS)),
]


def frames(shape: tuple[int, ...], timesteps: int, batch: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for _ in range(timesteps)]


def spiking(name: str, spec: QuantSpec, dtype: torch.dtype = torch.float64) -> SpikingNetwork:
    """A network with batch norm statistics, steps and gains as training leaves them: none is at its start."""
    build, shape = MODELS[name]
    torch.manual_seed(3)
    model = build()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.3)
    (x,) = frames(shape, 1, batch=32)
    model.train()(x.float())  # the running statistics become those of the data
    qann = quantize(model.eval().to(dtype), spec, example=x.to(dtype))
    hooks = []
    for site in qann.sites().values():

        def calibrate(module: nn.Module, arguments: tuple[Tensor], site: object = site) -> None:
            signal = arguments[0]
            others = [dim for dim in range(signal.dim()) if dim != 1]
            spread = signal.std(others) if spec.granularity == "channel" else signal.std()
            site.set_step(0.45 * spread.clamp(min=0.1))  # type: ignore[attr-defined]
            site.offset.data.copy_(0.07 * site.start)  # type: ignore[attr-defined]
            if site.raw_gain is not None:  # type: ignore[attr-defined]
                site.raw_gain.data.fill_(0.3)  # type: ignore[attr-defined]

        hooks.append(site.register_forward_pre_hook(calibrate))
    with torch.no_grad(), qann.float_activations():
        qann(x.to(dtype))
    for hook in hooks:
        hook.remove()
    return convert(qann.to(dtype))


def run(snn: SpikingNetwork, inputs: list[Tensor]) -> tuple[object, dict[str, Tensor], dict[str, int]]:
    """The network's own output, codes C[T], and number of unit spikes."""
    codes: dict[str, Tensor] = {}
    spikes: dict[str, int] = {}

    def observe(site: str, timestep: int, fired: Tensor) -> None:
        codes[site] = fired if timestep == 1 else codes[site] + fired
        spikes[site] = spikes.get(site, 0) + int(fired.abs().sum())

    with torch.no_grad(), snn.observe(observe):
        output = snn(torch.stack(inputs), time_dim=0)
    return output, codes, spikes


def different(simulation: Simulation, codes: Mapping[str, Tensor], margin: float) -> dict[str, int]:
    """Codes that differ outside the margin, by site."""
    assert list(simulation.codes) == list(codes)
    return {
        site: int(((simulation.codes[site] != codes[site]) & (simulation.margins[site] > margin)).sum())
        for site in codes
    }


@pytest.mark.parametrize("timesteps", [1, 2, 4])
@pytest.mark.parametrize(("name", "spec"), CASES)
def test_codes_and_output_are_those_of_the_network(name: str, spec: QuantSpec, timesteps: int) -> None:
    snn = spiking(name, spec)
    inputs = frames(MODELS[name][1], timesteps)
    for given in ([inputs[0]] * timesteps, inputs):
        simulation = simulate(snn, given)
        output, codes, spikes = run(snn, given)
        assert simulation.timesteps == timesteps
        assert not any(different(simulation, codes, 1e-9).values())
        torch.testing.assert_close(simulation.output, output, rtol=1e-9, atol=1e-9)
        # Every unit spike was emitted once, and none was emitted and taken back within a timestep.
        assert simulation.spikes == spikes
        for site, found in simulation.codes.items():
            assert found.dtype == torch.int64 and found.shape == codes[site].shape
            assert len(found.unique()) >= 3 and bool((simulation.margins[site] >= 0).all())


@pytest.mark.parametrize(("name", "spec"), [("plain", LEARNED), ("residual", UNSIGNED), ("branches", CHANNELS)])
def test_float32_agrees_outside_its_rounding(name: str, spec: QuantSpec) -> None:
    snn = spiking(name, spec, torch.float32)
    inputs = [x.float() for x in frames(MODELS[name][1], 1, batch=8)]
    before = {key: value.clone() for key, value in snn.state_dict().items()}
    simulation = simulate(snn, inputs)
    _, codes, _ = run(snn, inputs)
    assert not any(different(simulation, codes, 1e-5).values())
    assert all(torch.equal(before[key], value) for key, value in snn.state_dict().items())


def test_a_difference_between_the_two_is_found() -> None:
    snn = spiking("plain", SIGNED)
    inputs = frames((1, 8, 8), 1, batch=8)
    _, codes, _ = run(snn, inputs)

    def simulated(change: Callable[[SpikingNetwork], object]) -> list[int]:
        altered = copy.deepcopy(snn)
        with torch.no_grad():
            change(altered)
        return list(different(simulate(altered, inputs), codes, 1e-9).values())

    def bias(network: SpikingNetwork) -> object:
        return network.network.get_parameter("conv2.bias").zero_()

    def weight(network: SpikingNetwork) -> object:
        return network.network.get_parameter("conv3.weight")[2].mul_(1.2)

    def step(network: SpikingNetwork) -> object:
        return list(network.sites().values())[1].start.mul_(1.01)

    assert simulated(lambda network: None) == [0, 0, 0]
    for change, first in ((bias, 1), (weight, 2), (step, 1)):
        counts = simulated(change)
        assert counts[:first] == [0] * first and counts[first] > 0, change


def test_margins_are_distances_to_the_boundaries_that_exist() -> None:
    snn = spiking("mlp", UNSIGNED)
    first = snn.sites()[next(iter(snn.sites()))]
    x = frames((10,), 1)
    simulation = simulate(snn, x)
    signals: list[Tensor] = []
    hook = first.register_forward_pre_hook(lambda module, arguments: signals.append(arguments[0]))
    snn(x[0])
    hook.remove()
    boundaries = (torch.arange(1, 5, dtype=torch.float64) - 0.5) * first.step  # between the codes 0 .. 4
    expected = (signals[0].unsqueeze(-1) - boundaries).abs().amin(-1) / first.step
    torch.testing.assert_close(next(iter(simulation.margins.values())), expected)


def test_counts_of_a_network_worked_out_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LeakyReLU(0.5), nn.Linear(2, 3, bias=False))
    model[0].weight.data = torch.eye(2)
    model[2].weight.data = torch.tensor([[1.0, 2.0], [0.0, 3.0], [0.0, -1.0]])
    x = torch.tensor([[2.2, -1.9], [0.0, 0.6]])
    qann = quantize(model.eval(), QuantSpec(negative=2, positive=2), example=x)
    next(iter(qann.sites().values())).set_step(1.0)
    simulation = simulate(convert(qann), [x])
    assert simulation.codes["1"].tolist() == [[2, -2], [0, 1]]
    assert simulation.spikes == {"1": 5}
    assert simulation.additions == {
        "1": 2 * 1 + 2 * 3 + 1 * 3
    }  # unit spikes times fan-out; a zero weight is no synapse
    assert sum(simulation.injections.values()) == 3 and simulation.graded == ()
    assert simulation.output.tolist() == [[2 - 2.0, -3.0, 1.0], [2.0, 3.0, -1.0]]  # a negative spike is worth 0.5


def test_negative_spikes_of_gain_zero_are_fired_and_add_nothing() -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    model[0].weight.data = model[2].weight.data = torch.ones(1, 1)
    x = torch.tensor([[-2.0], [1.0]])
    qann = quantize(model.eval(), QuantSpec(negative=2, positive=2, gain=0.0, signed="all"), example=x)
    next(iter(qann.sites().values())).set_step(1.0)
    simulation = simulate(convert(qann), [x])
    assert (simulation.spikes, simulation.additions) == ({"1": 3}, {"1": 1})
    assert simulation.output.tolist() == [[0.0], [1.0]]


def test_pooling_is_a_comparator_on_spikes_and_a_graded_junction_elsewhere() -> None:
    plain = simulate(spiking("plain", UNSIGNED), frames((1, 8, 8), 2))
    # The rectifier in front of the average over windows is no site: it works on sums, as a graded junction.
    assert (
        plain.graded == ("relu_1",) and len(plain.comparator_spikes) == 1 and min(plain.comparator_spikes.values()) > 0
    )
    branches = simulate(spiking("branches", CHANNELS), frames((1, 8, 8), 2))
    assert branches.graded == () and set(branches.comparator_spikes) == {"pool", "again"}
    analog = simulate(spiking("analog", UNSIGNED), frames((1, 10), 2))
    assert len(analog.graded) == 2 and analog.comparator_spikes == {}
    assert all(analog.injections[name] > 0 for name in analog.graded)
    residual = simulate(spiking("residual", UNSIGNED), frames((2, 6, 6), 1))
    assert len(residual.graded) == 1


def test_several_inputs_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return torch.relu(self.one(left) - self.two(right).relu())

    torch.manual_seed(0)
    given = {"right": torch.randn(2, 2), "left": torch.randn(2, 3)}
    qann = quantize(Two().eval(), UNSIGNED, example=given)
    for site in qann.sites().values():
        site.set_step(0.2)
    snn = convert(qann)
    simulation = simulate(snn, [given])
    torch.testing.assert_close(simulation.output.float(), snn(**given))
    with pytest.raises(InputError, match=r"inputs \['right'\] are missing"):
        simulate(snn, [{"left": given["left"]}])


def test_constants_sizes_and_outputs_that_no_signal_reaches() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 3, 2), nn.Linear(27, 4)
            self.shift, self.token = nn.Parameter(torch.randn(1, 3, 1, 1)), nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = torch.relu(self.one(x.float() / 255 * 2.0) + self.shift)
            return torch.relu(self.two(x.view(x.size(0), -1))), self.token * 2

    torch.manual_seed(0)
    x = torch.randint(0, 256, (3, 1, 4, 4)).float()
    qann = quantize(Odd().eval(), UNSIGNED, example=x)
    for site in qann.sites().values():
        site.set_step(0.3)
    snn = convert(qann)
    simulation = simulate(snn, [x, x])
    output = snn(x, timesteps=2)
    torch.testing.assert_close(simulation.output[0].float(), output[0])
    assert simulation.output[1].tolist() == output[1].tolist() == [2.0, 2.0]
    assert sum(simulation.spikes.values()) > 0


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    snn = spiking("plain", UNSIGNED)
    (x,) = frames((1, 8, 8), 1)
    with pytest.raises(SpecError, match=r"what polarspike.convert or polarspike.unroll returns"):
        simulate(Plain(), [x])  # type: ignore[arg-type]
    for wrong in (x, []):
        with pytest.raises(InputError, match="a list with one input batch per timestep"):
            simulate(snn, wrong)
    with pytest.raises(InputError, match="timestep 2: expected the shapes of the first"):
        simulate(snn, [x, x[:2]])
    with pytest.raises(InputError, match="timestep 1, input '0': expected finite values"):
        simulate(snn, [x / 0.0])
    with pytest.raises(InputError, match="expected shape"):
        simulate(snn, [x.expand(3, 2, 8, 8)])
    broken = copy.deepcopy(snn)
    broken.network.get_parameter("conv2.weight").data[0] = torch.nan
    with pytest.raises(InputError, match=r"but 'network.conv2.weight' holds NaN or Inf"):
        simulate(broken, [x])
    huge = copy.deepcopy(snn)
    huge.network.get_parameter("conv1.weight").data.mul_(1e308)
    with pytest.raises(InputError, match="expected finite membranes"):
        simulate(huge, [10 * x])
    for limit in ("_MOST_SYNAPSES", "_MOST_PROBES"):
        with monkeypatch.context() as patch:
            patch.setattr(circuit, limit, 5000)
            with pytest.raises(InputError, match=r"at most 5,000 .* give smaller images"):
                simulate(snn, [x])


def test_operators_that_mix_samples_are_refused() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.one(x))
            return torch.relu(self.two(x - x.mean(0, keepdim=True)))

    class Joined(Centred):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.one(x))
            return torch.relu(self.two(x)).sum(0)

    torch.manual_seed(0)
    x = torch.randn(4, 3)
    for build, message in ((Centred, "not affine in each sample"), (Joined, "join or split the batch")):
        qann = quantize(build().eval(), UNSIGNED, example=x)
        for site in qann.sites().values():
            site.set_step(0.2)
        with pytest.raises(OperatorError, match=message):
            simulate(convert(qann), [x])
