"""Directly trained networks with other tools' neurons in the places of ours: the same weights, images and answers?

    python benchmarks/peer_neurons.py     in an environment that has both: pip install 'polarspike[baselines]'

The directly trained networks of the preset "small" (residual network, Fashion-MNIST at 14x14 pixels, seed 0; trained now
where ``runs/rivals`` lacks them), read at T = 1 and 4 on all 10,000 test images. In a copy of each, every neuron becomes one
of SpikingJelly's or snnTorch's of the same law, driven through its public interface. In
``benchmarks/results/peer_neurons.json``: percent right of either, and how many answers and spikes differ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from _common import conditions, keep, require
from rivals import RUNS, TABLE
from torch import Tensor, nn

from polarspike.baselines.contest import Contest
from polarspike.baselines.leaky import LeakyNeuron
from polarspike.baselines.presets import preset
from polarspike.evaluation import FiringCounter
from polarspike.graph.editing import modules_of
from polarspike.spiking.sequences import SequenceNetwork, SequenceNeuron, SpikeTrain

NETWORK = "resnet20-16-blocks1"
READ = (1, 4)


class TheirNeuron(SequenceNeuron):
    """A site whose spikes another tool's neuron fires; what a spike is worth stays ours.

    Args:
        site: whose place it takes.
        fire: the spikes of all timesteps, (S, batch, ...), from rest.
    """

    def __init__(self, site: LeakyNeuron, fire: Callable[[Tensor], Tensor]) -> None:
        super().__init__(site.spec, site.name)
        self.adopt(site)
        self.fire = fire

    def train_of(self, currents: Tensor) -> SpikeTrain:
        return SpikeTrain(self.fire(currents))


def spikingjellys(method: str, site: LeakyNeuron) -> Callable[[Tensor], Tensor]:
    """A node of SpikingJelly's with the law of a site."""
    from spikingjelly.activation_based import functional, neuron, surrogate

    hard: dict[str, Any] = {"v_reset": 0.0, "step_mode": "m"}
    if method == "lif":
        node: nn.Module = neuron.LIFNode(tau=2.0, decay_input=False, **hard)
    elif method == "plif":
        assert site.raw_decay is not None
        node = neuron.ParametricLIFNode(init_tau=2.0, decay_input=True, **hard)
        assert isinstance(node.w, Tensor)  # the parameter that decay comes from
        node.w.data.copy_(site.raw_decay.detach())
    elif method == "ternary":
        node = neuron.TernaryLIFNode(tau=4.0 / 3.0, decay_input=False, v_threshold=0.5, **hard)
    else:
        counts = surrogate.MultiLevelSpikeCount(site.spec.positive)
        node = neuron.ILIFNode(tau=4.0 / 3.0, surrogate_function=counts, step_mode="m")

    def fire(currents: Tensor) -> Tensor:
        functional.reset_net(node)
        spikes: Tensor = node(currents)
        return spikes

    return fire


def snntorchs(method: str, site: LeakyNeuron) -> Callable[[Tensor], Tensor]:
    """A neuron of snnTorch's with the law of LIF."""
    import snntorch

    del site
    assert method == "lif"
    node = snntorch.Leaky(beta=0.5, threshold=1.0, reset_mechanism="zero", reset_delay=False)

    def fire(currents: Tensor) -> Tensor:
        membrane, spikes = node.reset_mem(), []
        for current in currents:
            fired, membrane = node(current, membrane)
            spikes.append(fired)
        return torch.stack(spikes)

    return fire


TOOLS = {"spikingjelly": spikingjellys, "snntorch": snntorchs}


def with_neurons(network: SequenceNetwork, tool: str, method: str) -> SequenceNetwork:
    """A copy with the neurons of another tool."""
    twin = copy.deepcopy(network)
    for path, site in modules_of(twin.network, LeakyNeuron).items():
        twin.network.set_submodule(path, TheirNeuron(site, TOOLS[tool](method, site)))
    return twin.eval()


@torch.no_grad()
def compared(ours: SequenceNetwork, theirs: SequenceNetwork, test: Any) -> dict[str, Any]:
    """Percent right of both at every T that is read, answers that differ, and spikes."""
    found: dict[str, Any] = {f"{who}_right": dict.fromkeys(READ, 0) for who in ("our", "their")}
    found |= {"answers_differ": dict.fromkeys(READ, 0), "images": 0}
    counters = FiringCounter(), FiringCounter()
    for images, labels in test:
        answers = []
        for network, counter in zip((ours, theirs), counters, strict=True):
            with network.observe(counter):
                answers.append(network(images, timesteps=max(READ), every_step=True).argmax(-1))
        found["images"] += len(labels)
        for timesteps in READ:
            mine, other = (answer[timesteps - 1] for answer in answers)
            found["our_right"][timesteps] += int((mine == labels).sum())
            found["their_right"][timesteps] += int((other == labels).sum())
            found["answers_differ"][timesteps] += int((mine != other).sum())
    found["our_spikes"], found["their_spikes"] = (counter.up_to(max(READ)).spikes for counter in counters)
    return found


def main() -> None:
    torch.set_num_threads(1)
    versions = {tool: require(tool) for tool in TOOLS}
    parts = [part.comparison for part in preset("small") if part.comparison.network == NETWORK]
    trained = ((1, "epochs"), (4, "time"))
    runs = [(part, run) for part in parts for run in part.runs() if run["seed"] == 0]
    asked = [(part, run) for part, run in runs if (run["trained_steps"], run["budget"]) in trained]
    rows = []
    for part, run in asked:
        contest = Contest(part, RUNS, table=TABLE)
        ours = contest.rival(run).network()
        assert isinstance(ours, SequenceNetwork)
        for tool in TOOLS if run["method"] == "lif" else ("spikingjelly",):
            theirs = with_neurons(ours, tool, run["method"])
            named = {name: run[name] for name in ("method", "trained_steps", "budget")}
            rows.append({"tool": tool, **named, **compared(ours, theirs, contest.scene.test())})
            print(rows[-1], flush=True)
    keep("peer_neurons", {**conditions(0), **versions, "network": NETWORK, "rows": rows})


if __name__ == "__main__":
    main()
