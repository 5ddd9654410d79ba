"""Other tools in a comparison: missing ones wait, refusals stand in the table, failures do not, searches have an end."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from polarspike.baselines import contest as contest_module
from polarspike.baselines.choice import chosen, shared_out
from polarspike.baselines.contest import Contest
from polarspike.baselines.cost import announcement
from polarspike.baselines.peers import PEERS, PeerNetwork, registry
from polarspike.errors import MissingExtraError, SpecError
from polarspike.evaluation import Evaluation, Firing
from polarspike.report.claims import verdicts
from polarspike.report.required import Kind
from tests.baselines.test_comparison import SMALL

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("comparison")]


def test_a_tool_that_is_missing_is_left_for_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(package: str) -> str:
        raise MissingExtraError(package, "baselines")

    monkeypatch.setattr(contest_module, "version", nowhere)
    said: list[str] = []
    asked = dataclasses.replace(SMALL, data="digits", methods=("sinabs", "ann"))
    contest = Contest(asked, tmp_path, say=said.append)
    contest.carry_out()
    assert [run["method"] for run in contest.missing()] == ["sinabs"]
    assert "1 runs to do, 1 done; cost of the rest: about " in announcement([contest])
    assert any("left out here" in line and "polarspike[baselines]" in line for line in said)


class Tool:
    """A stand-in for another tool: refuses one setting, breaks at another, and is the float network otherwise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.broken = ""
        peer = dataclasses.replace(PEERS["sinabs"], **settings)
        monkeypatch.setitem(PEERS, "sinabs", peer)
        for module in (contest_module, registry):
            monkeypatch.setattr(module, "version", lambda package: peer.tested)
        monkeypatch.setattr(contest_module, "convert_with", self.convert)

    def convert(self, name: str, ann: torch.nn.Module, batches: Any, **setting: Any) -> PeerNetwork:
        if setting.get("percentile") or self.broken == "refuses":
            raise SpecError("sinabs: a branch")
        if self.broken:
            raise RuntimeError(self.broken)
        made = copy.deepcopy(ann)
        neuron = next(module for module in made.modules() if isinstance(module, torch.nn.ReLU))
        return PeerNetwork(made, {"neuron": neuron}, lambda snn: None)


PEER = dataclasses.replace(SMALL, data="digits", methods=("sinabs",), latencies=(1, 2))
SEARCHED: tuple[dict[str, Any], ...] = ({"percentile": 99.0}, {"scale": 1.0}, {"scale": 2.0})


def test_what_a_tool_refuses_stands_in_the_row_and_the_end_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Tool(monkeypatch, settings=SEARCHED, edges=({"scale": 1.0},), tested="3")
    contest = Contest(PEER, tmp_path)
    contest.carry_out()
    said = {row["setting"] for row in contest.rows()}
    assert said == {
        "sinabs 3, {'scale': 1.0}; at the edge of the search; {'percentile': 99.0} refused: sinabs: a branch"
    }
    kinds = {"polarspike-free": Kind("conversion", "multi"), "sinabs": Kind("conversion", "multi")}
    ours = {"method": "polarspike-free", "levels": "4", "accuracy": "100", "spikes": "0"}
    rows = [row for row in contest.rows() if row["latency"] == "1"]
    both = [{**row, **ours} for row in rows] + [{**row, "accuracy": "100"} for row in rows]
    first, *_ = verdicts(both, kinds)
    assert (first.claim, first.outcome) == ("first at T = 1", "open")


def test_what_goes_wrong_in_a_tool_leaves_its_run_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = Tool(monkeypatch, settings=SEARCHED, tested="3")
    said: list[str] = []
    contest = Contest(PEER, tmp_path, say=said.append)
    tool.broken = "out of memory"
    contest.carry_out()
    assert contest.rows() == [] and len(contest.missing()) == 1
    assert any("sinabs, {'scale': 1.0}: RuntimeError: out of memory" in line for line in said)
    tool.broken = "refuses"
    contest.carry_out()
    (row,) = contest.rows()
    assert "no setting converts this network: {'percentile': 99.0}, {'scale': 1.0}, {'scale'" in row["setting"]
    assert contest.missing() == []


def test_another_search_or_version_of_a_tool_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Tool(monkeypatch, settings=SEARCHED, tested="3")
    contest = Contest(PEER, tmp_path)
    contest.carry_out()
    assert contest.missing() == [] and PEER.runs()[0]["setup"] != PEER.setup
    ours = dataclasses.replace(PEER, methods=("ann",)).runs()
    assert ours[0]["setup"] == PEER.setup
    Tool(monkeypatch, settings=SEARCHED, tested="4")
    assert len(contest.missing()) == 1 and contest.rows() == []
    Tool(monkeypatch, settings=(*SEARCHED, {"scale": 4.0}), tested="3")
    assert len(contest.missing()) == 1
    Tool(monkeypatch, settings=SEARCHED, tested="3")
    assert contest.missing() == []


def test_of_settings_that_are_as_good_the_one_of_fewest_spikes_is_taken() -> None:
    def of(right: int, spikes: int) -> tuple[Evaluation, int]:
        return Evaluation({2: right}, 1000, {2: Firing(spikes, spikes, 0, 0, 1000)}), 2

    assert chosen([of(900, 24_000), of(898, 6_000), of(897, 5_000), of(890, 1_000)]) == 2
    assert chosen([of(900, 24_000), of(896, 10)]) == 0
    assert chosen([of(890, 500), of(892, 500)]) == 1
    # Each latency goes to one setting; what leaves no step there is no candidate.
    good, late = Evaluation({1: 900, 7: 900}, 1000), Evaluation({4: 950}, 1000)
    assert shared_out([({2: 1, 8: 7}, good), ({8: 4}, late)]) == {0: {2: 1}, 1: {8: 4}}
