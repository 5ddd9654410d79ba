"""A graph as plain data and back; hostile or damaged descriptions are errors and never run code."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polarspike as ps
from polarspike.errors import CheckpointError
from polarspike.graph.layers import DropPath
from polarspike.graph.operator_table import MODULES
from polarspike.graph.serialization import build_graph, build_module, describe_graph, describe_module

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
Row = dict[str, Any]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("shift", torch.rand(4, 1, 1), persistent=False)

    def forward(self, x: Tensor, flag: bool = True) -> dict[str, Tensor]:
        x = F.pad(torch.relu(self.norm(self.conv(x))) * self.scale + self.shift, (0, 1), value=float("inf"))
        x = torch.cat([x[..., :-1], x[:, [0, 1, 2, 3], :, 1:8].transpose(2, 3)], dim=2)
        x = F.max_pool2d(x, 2).view(x.size(0), 4, -1).mean(dim=-1)
        return {"y": self.head(x)}


@pytest.fixture
def network() -> ps.QuantizedNetwork:
    qann = ps.quantize(Net(), ps.QuantSpec(), example=X)
    for site in qann.sites().values():
        site.set_step(0.25)
    return qann.eval()


def described(qann: ps.QuantizedNetwork) -> tuple[dict[str, Any], dict[str, Tensor]]:
    data = json.loads(json.dumps(describe_graph(qann.network)))
    return data, {**qann.network.state_dict(), "shift": qann.network.shift}  # type: ignore[dict-item]


def test_through_json_and_back_is_the_same_graph(network: ps.QuantizedNetwork) -> None:
    data, tensors = described(network)
    graph = build_graph(data, tensors)
    graph.load_state_dict(tensors, strict=True, assign=True)
    assert torch.equal(graph.eval()(X)["y"], network(X)["y"])
    assert describe_graph(graph) == data
    assert [node.name for node in graph.graph.nodes] == [node.name for node in network.network.graph.nodes]


def test_building_costs_no_memory_and_no_random_numbers(network: ps.QuantizedNetwork) -> None:
    data, tensors = described(network)
    data["modules"]["head"]["arguments"] |= {"in_features": 10**6, "out_features": 10**6}  # 4 TB, if it were made
    state = torch.get_rng_state()
    graph = build_graph(data, tensors)
    assert torch.equal(state, torch.get_rng_state())
    assert graph.get_parameter("head.weight").is_meta
    with pytest.raises(RuntimeError, match=r"size mismatch for head.weight"):
        graph.load_state_dict(tensors, strict=True, assign=True)


EXAMPLES: list[nn.Module] = [
    nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2, bias=False, padding_mode="circular"),
    nn.Conv2d(2, 4, (3, 5), padding="same"),
    nn.Conv3d(1, 2, 1),
    nn.ConvTranspose1d(2, 4, 3, 2, 1, 1, 2, False, 2),
    nn.ConvTranspose2d(2, 4, (3, 2)),
    nn.ConvTranspose3d(2, 4, 3),
    nn.Linear(3, 2, bias=False),
    nn.BatchNorm1d(3, eps=1e-3, momentum=None),
    nn.BatchNorm2d(3, affine=False),
    nn.BatchNorm3d(3, track_running_stats=False),
    nn.SyncBatchNorm(3, momentum=0.2),
    nn.AvgPool1d(3, 2, 1, True, False),
    nn.AvgPool2d(3, 2, 1, True, False, 5),
    nn.AvgPool3d(2),
    nn.AdaptiveAvgPool1d(1),
    nn.AdaptiveAvgPool2d((None, 3)),
    nn.AdaptiveAvgPool3d(2),
    nn.MaxPool1d(3, 2, 1, 2, ceil_mode=True),
    nn.MaxPool2d((3, 2)),
    nn.MaxPool3d(2),
    nn.AdaptiveMaxPool1d(1),
    nn.AdaptiveMaxPool2d((1, None)),
    nn.AdaptiveMaxPool3d(1),
    nn.ReLU(),
    nn.ReLU6(),
    nn.LeakyReLU(0.3),
    nn.RReLU(0.1, 0.3),
    nn.Dropout(0.1),
    nn.Dropout1d(0.2),
    nn.Dropout2d(0.3),
    nn.Dropout3d(0.4),
    nn.Identity(),
    nn.Flatten(2, 3),
    nn.Unflatten(1, (2, 2)),
    nn.PixelShuffle(2),
    nn.PixelUnshuffle(2),
    nn.ZeroPad2d((1, 2, 0, 1)),
    nn.ConstantPad2d(1, 0.5),
    nn.ReflectionPad2d(1),
    nn.ReplicationPad2d((1, 0, 0, 1)),
    nn.ReflectionPad1d(1), nn.ReflectionPad3d(1), nn.ReplicationPad1d((1, 0)), nn.ReplicationPad3d(1),
    nn.CircularPad1d(1), nn.CircularPad2d((1, 0, 0, 1)), nn.CircularPad3d(1), nn.ZeroPad1d(1), nn.ZeroPad3d(1),
    nn.ConstantPad1d(1, 0.5), nn.ConstantPad3d(1, -0.5), nn.UpsamplingNearest2d(scale_factor=2),
    nn.UpsamplingBilinear2d(size=(3, 4)), nn.RMSNorm((3,), eps=1e-3), nn.LayerNorm((2, 3), bias=False),
    nn.GroupNorm(2, 4, affine=False), nn.InstanceNorm1d(3), nn.InstanceNorm2d(3, affine=True), nn.InstanceNorm3d(3),
    nn.LocalResponseNorm(2, k=2.0), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(),
    nn.SELU(), nn.Softsign(), nn.LogSigmoid(), nn.Tanhshrink(), nn.GELU("tanh"), nn.ELU(0.5), nn.CELU(2.0),
    nn.Softplus(2.0, 10.0), nn.Hardtanh(-2.0, 3.0), nn.PReLU(3), nn.Softshrink(0.25), nn.Hardshrink(0.25),
    nn.Threshold(0.1, -1.0), nn.GLU(1), nn.Softmax(1), nn.LogSoftmax(-1), nn.Softmin(0), nn.Softmax2d(),
    nn.AlphaDropout(0.1), nn.FeatureAlphaDropout(0.2), DropPath(0.1, "batch"), nn.ChannelShuffle(2),
    nn.Unfold(2, padding=1), nn.Embedding(5, 3, padding_idx=1),
    nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=False, recompute_scale_factor=True),
]  # fmt: skip


@pytest.mark.parametrize("module", EXAMPLES, ids=lambda module: type(module).__name__)
def test_every_row_of_the_table_is_rebuilt_as_it_was(module: nn.Module) -> None:
    data = json.loads(json.dumps(describe_module(module, "m")))
    again = build_module(data, "m")
    assert type(again) is type(module) and again.extra_repr() == module.extra_repr()
    for field in MODULES[type(module)].fields:
        mine, theirs = getattr(module, field), getattr(again, field)
        if not isinstance(mine, Tensor):
            assert theirs == mine and type(theirs) is type(mine), field
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in module.state_dict().items()}


def test_the_examples_are_the_table() -> None:
    assert {type(module) for module in EXAMPLES} == set(MODULES)


def test_what_the_table_cannot_express_is_not_written(network: ps.QuantizedNetwork) -> None:
    with pytest.raises(CheckpointError, match="module 'm': Bilinear is not in the operator table"):
        describe_module(nn.Bilinear(1, 1, 1), "m")
    hooked = nn.Linear(1, 1)
    hooked.register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(CheckpointError, match="module 'm': hooks cannot be saved"):
        describe_module(hooked, "m")
    node = next(node for node in network.network.graph.nodes if node.op == "call_function")
    node.args = (*node.args, torch.device("cpu"))
    with pytest.raises(CheckpointError, match="an argument of type device cannot be saved"):
        describe_graph(network.network)
    node.target = torch.special.i0
    with pytest.raises(CheckpointError, match=r"i0 is not in the operator table"):
        describe_graph(network.network)


# --- hostile and damaged descriptions ------------------------------------------------------------------------------------


def node_of(data: dict[str, Any], **wanted: Any) -> Row:
    return next(row for row in data["nodes"] if all(row[key] == value for key, value in wanted.items()))


def changed(**values: Any) -> Callable[[Row], None]:
    return lambda row: row.update(values)


CODE = "__import__('pathlib').Path('PWNED').touch()"
HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "code as a node's name": lambda d: d["nodes"][1].update(name=CODE),
    "a statement as a node's name": lambda d: d["nodes"][1].update(name=f"x = 1\n    {CODE}"),
    "a keyword as a node's name": lambda d: d["nodes"][1].update(name="class"),
    "code as a placeholder": lambda d: d["nodes"][0].update(target=f"x={CODE}"),
    "self as a placeholder": lambda d: d["nodes"][0].update(target="self"),
    "code as an argument's name": lambda d: node_of(d, target="torch.cat")["kwargs"].update({f"dim={CODE}, x": 1}),
    "code as a module path": lambda d: (d["modules"].update({f"a({CODE})": d["modules"]["conv"]}),
                                        node_of(d, target="conv").update(target=f"a({CODE})")),
    "the class as a module path": lambda d: node_of(d, target="conv").update(target="__class__"),
    "a method as a module path": lambda d: (d["modules"].update({"forward": d["modules"]["conv"]}),
                                            node_of(d, target="conv").update(target="forward")),
    "the modules as a module path": lambda d: (d["modules"].update({"_modules": d["modules"]["conv"]}),
                                               node_of(d, target="conv").update(target="_modules")),
    "a method inside a module": lambda d: (d["modules"].update({"a.state_dict": d["modules"]["conv"]}),
                                           node_of(d, target="conv").update(target="a.state_dict")),
    "a path that is not in the file": lambda d: node_of(d, target="conv").update(target="nowhere"),
    "a tensor as a module": lambda d: node_of(d, target="conv").update(target="scale"),
    "a module as a tensor": lambda d: node_of(d, op="get_attr").update(target="conv"),
    "a constant without tensor": lambda d: d["constants"].update(absent="buffer"),
    "an unknown function": lambda d: node_of(d, target="torch.cat").update(target="torch.load"),
    "eval": lambda d: node_of(d, target="torch.cat").update(target="builtins.eval", args=[CODE], kwargs={}),
    "exec as a method": lambda d: node_of(d, op="call_method").update(target="__reduce__"),
    "a forbidden attribute": lambda d: node_of(d, target="torch.cat").update(
        target="builtins.getattr", args=[{"node": "x"}, "__class__"], kwargs={}),
    "an attribute by keyword": lambda d: node_of(d, target="torch.cat").update(
        target="builtins.getattr", args=[{"node": "x"}], kwargs={"name": "__class__"}),
    "an unknown module": lambda d: d["modules"]["conv"].update(type="Module"),
    "a module of another library": lambda d: d["modules"]["conv"].update(type="os.system"),
    "an unknown argument": lambda d: d["modules"]["conv"]["arguments"].update(device="cpu"),
    "a wrong argument": lambda d: d["modules"]["conv"]["arguments"].update(kernel_size="3"),
    "an impossible argument": lambda d: d["modules"]["conv"]["arguments"].update(groups=0),
    "a missing argument": lambda d: d["modules"]["conv"]["arguments"].pop("in_channels"),
    "an unknown site": lambda d: d["modules"]["relu"].update(spec={"type": "QuantSpec", "version": 1}),
    "a site of no levels": lambda d: d["modules"]["relu"]["spec"].update(positive=0),
    "a site of wrong type": lambda d: d["modules"]["relu"]["spec"].update(gain="learned"),
    "an unknown kind of node": lambda d: d["nodes"][1].update(op="exec"),
    "a reference to itself": lambda d: node_of(d, target="conv").update(args=[{"node": "conv"}]),
    "a cycle": lambda d: d["nodes"].insert(1, d["nodes"].pop(3)),
    "a reference to nothing": lambda d: node_of(d, target="conv").update(args=[{"node": "ghost"}]),
    "two tags": lambda d: node_of(d, target="conv").update(args=[{"node": "x", "tuple": []}]),
    "no tag": lambda d: node_of(d, target="conv").update(args=[{}]),
    "an unknown tag": lambda d: node_of(d, target="conv").update(args=[{"pickle": "gASVAA=="}]),
    "a list without tag": lambda d: node_of(d, target="conv").update(args=[[{"node": "x"}]]),
    "an untagged float": lambda d: node_of(d, target="conv").update(args=[0.5]),
    "a float of code": lambda d: node_of(d, target="conv").update(args=[{"float": CODE}]),
    "an unknown type": lambda d: node_of(d, target="conv").update(args=[{"dtype": "object"}]),
    "a slice of four": lambda d: node_of(d, target="conv").update(args=[{"slice": [1, 2, 3, 4]}]),
    "self as a node's name": lambda d: d["nodes"][2].update(name="self"),
    "no output": lambda d: d["nodes"].pop(),
    "two outputs": lambda d: d["nodes"].append({**d["nodes"][-1], "name": "again"}),
    "nodes after the output": lambda d: d["nodes"].append({**d["nodes"][1], "name": "again"}),
    "one name twice": lambda d: d["nodes"][2].update(name=d["nodes"][1]["name"]),
    "no nodes": lambda d: d.update(nodes=[]),
    "nodes that are no list": lambda d: d.update(nodes=7),
    "a node that is no object": lambda d: d["nodes"].insert(0, None),
    "a node without target": lambda d: d["nodes"][1].pop("target"),
    "modules that are no object": lambda d: d.update(modules=[1]),
    "no modules": lambda d: d.pop("modules"),
    "a number as a name": lambda d: d["nodes"][1].update(name=3),
    "a number as a function": lambda d: node_of(d, target="torch.cat").update(target=3),
    "a list as a function": lambda d: node_of(d, target="torch.cat").update(target=[]),
    "arguments that are no list": lambda d: d["nodes"][1].update(args=None),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_data_is_an_error_and_never_runs(
    name: str, network: ps.QuantizedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, tensors = described(network)
    before = copy.deepcopy(data)
    build_graph(before, tensors)
    HOSTILE[name](data)
    assert data != before
    with pytest.raises(CheckpointError):
        build_graph(data, tensors)
    assert not list(tmp_path.iterdir())


def test_text_in_arguments_stays_text(
    network: ps.QuantizedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, tensors = described(network)
    for quote in ("'", '"', '"""', "'''", "\\", "\n"):
        text = f"{quote}, {CODE}, {quote}"
        nested = {"dict": {text: {"tuple": [text, {"list": [text]}]}}}
        node_of(data, target="conv").update(args=[{"node": "x"}, text, nested, {"slice": [text, None, None]}])
        graph = build_graph(data, tensors)
        with pytest.raises((TypeError, RuntimeError, NotImplementedError)):
            graph(X)
    assert not list(tmp_path.iterdir())


MASKS: dict[str, Callable[[Row], Any]] = {
    "nothing": lambda row: row.update(args=[]),
    "text": lambda row: row.update(args=[CODE, CODE]),
    "a number": lambda row: row.update(args=[3, {"dtype": "float32"}]),
    "a list of itself": lambda row: row.update(args=[{"list": [1, 2]}, {"dtype": "int64"}]),
    "an unknown keyword": lambda row: row.update(args=[], kwargs={"mask": CODE, "code": CODE}),
}


@pytest.mark.parametrize("function", ["layers.additive_mask", "layers.causal_mask"])
@pytest.mark.parametrize("name", MASKS)
def test_our_own_functions_with_odd_arguments_are_harmless(
    name: str, function: str, network: ps.QuantizedNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, tensors = described(network)
    row = node_of(data, target="torch.cat")
    row.update(target=function, kwargs={})
    MASKS[name](row)
    graph = build_graph(data, tensors)
    with pytest.raises((TypeError, AttributeError, RuntimeError, ValueError)):
        graph(X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "target", ["layers.math", "layers.nn", "layers.__builtins__", "layers.functional.relu", "math.inf"]
)
def test_only_the_functions_of_the_table_are_reached(target: str, network: ps.QuantizedNetwork) -> None:
    data, tensors = described(network)
    node_of(data, target="torch.cat").update(target=target)
    with pytest.raises(CheckpointError, match=r"unknown function .*; the file needs a newer release"):
        build_graph(data, tensors)


def test_inputs_of_integers_are_named_in_the_file(network: ps.QuantizedNetwork) -> None:
    data, tensors = described(network)
    assert data["integers"] == []
    for wrong in (["class"], [CODE], [3]):
        with pytest.raises(CheckpointError, match="expected an identifier"):
            build_graph({**data, "integers": wrong}, tensors)
    with pytest.raises(CheckpointError, match="damaged"):
        build_graph({key: value for key, value in data.items() if key != "integers"}, tensors)


def test_a_network_of_words_comes_back(tmp_path: Path) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm, self.head = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 3)
            self.mha = nn.MultiheadAttention(6, 2, batch_first=True)
            self.register_buffer("ahead", torch.ones(4, 4).triu(1).bool())

        def forward(self, ids: Tensor) -> Tensor:
            x = self.norm(self.table(ids))
            return self.head(x + self.mha(x, x, x, attn_mask=self.ahead, need_weights=False)[0])

    ids = torch.randint(0, 9, (3, 4))
    qann = ps.quantize(Words(), ps.QuantSpec(3, 4), example=ids)
    ps.calibrate(qann, [ids])
    qann.eval()
    for net in (qann, ps.convert(qann), ps.convert(qann, ps.ConvertSpec(max_spikes_per_step=2))):
        ps.save(net, tmp_path / "net.safetensors")
        again = ps.load(tmp_path / "net.safetensors")
        assert again.network.meta["integer_inputs"] == ["ids"]
        assert again.spec == net.spec and list(again.sites()) == list(net.sites())
        options = {} if net is qann else {"timesteps": 3}
        with torch.no_grad():
            assert torch.equal(again(ids, **options), net(ids, **options))


def test_a_cap_that_is_none_is_refused(network: ps.QuantizedNetwork) -> None:
    snn = ps.convert(network, ps.ConvertSpec(max_spikes_per_step=2))
    data = json.loads(json.dumps(describe_graph(snn.network)))
    assert data["modules"]["relu"]["cap"] == 2
    tensors = {**snn.network.state_dict(), "shift": snn.network.shift}
    assert build_graph(data, tensors).get_submodule("relu").cap == 2  # type: ignore[union-attr]
    for wrong in (CODE, None, [], 0, -1):
        data["modules"]["relu"]["cap"] = wrong
        with pytest.raises(CheckpointError):
            build_graph(data, tensors)


def test_nothing_in_the_library_unpickles_or_evaluates() -> None:
    source = Path(ps.__file__).parent
    never = {"pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "os.system", "yaml.load", "joblib.load"}
    found = []
    files = sorted(source.rglob("*.py"))
    assert len(files) > 30
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                found += [f"{path.name}: import {name}" for name in names & {"shelve", "marshal", "joblib", "dill"}]
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {item.arg: ast.unparse(item.value) for item in node.keywords}
                safe = called != "torch.load" or options.get("weights_only") == "True"
                safe &= options.get("allow_pickle", "False") == "False"
                if called in never or not safe:
                    found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert found == []
