"""Networks that people really have, captured without a change to their code: exact at T = 1, and the theorem at T > 1.

Random weights from a fixed seed, batch norms calibrated on the images, the smallest input that the network takes; attention
made as uneven as a trained one's, because that of random weights is uniform and fires one code everywhere. Levels (7, 8),
steps of least square error. Per network: the way of capture, sites, codes compared at T = 1 (float32, every bit), and the
sites whose comparison is void: fewer than 3 distinct codes, or not 5 to 95 % non-zero. With --theorem the codes after
T = 2, 4, 8, 32 steps against the T-fold refined quantized network on the mean input, repeated and varying input, float32 and
float64. With --control how many codes of that refined network are themselves undecided in float32: it runs once more in
float64, every site handed the same codes; what differs is float32's, and no spiking network takes part in it.

    pip install timm transformers
    python benchmarks/architectures.py [NAMES ...] [--theorem | --control]
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from typing import Any

import torch
from _common import RESULTS, conditions, keep
from torch import Tensor, nn

import polarspike as ps

SEED = 0
NAMED = [
    "torchvision:resnet18",
    "torchvision:resnext50_32x4d",
    "torchvision:vgg16_bn",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:densenet121",
    "torchvision:efficientnet_b0",
    "torchvision:googlenet",
    "torchvision:convnext_tiny",
    "torchvision:vit_b_16",
    "torchvision:swin_t",
    "timm:vit_small_patch16_224",
    "timm:deit_tiny_patch16_224",
    "timm:resnetv2_50",
    "timm:resmlp_12_224",
    "hf:bert",
    "hf:bert-eager",
    "hf:vit",
    "own:functional",
    "own:shared",
    "own:mha",
    "dense:lraspp",
    "dense:fpn",
]
OTHERS = [
    "torchvision:swin_v2_t",
    "torchvision:regnet_y_400mf",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:mnasnet0_5",
    "torchvision:squeezenet1_1",
    "torchvision:efficientnet_v2_s",
    "timm:cait_xxs24_224",
    "timm:xcit_nano_12_p16_224",
    "timm:repvgg_a0",
    "timm:nf_resnet50",
    "timm:mixer_s32_224",
    "timm:poolformer_s12",
    "timm:convnext_atto",
    "timm:pvt_v2_b0",
    "timm:levit_128s",
    "timm:edgenext_xx_small",
    "timm:hrnet_w18_small",
    "timm:mobilevit_xs",
    "hf:gpt2",
    "hf:llama",
    "hf:segformer",
    "dense:fcn",
]
THEOREM = [
    "torchvision:resnet18",
    "torchvision:densenet121",
    "torchvision:mobilenet_v3_small",
    "torchvision:vit_b_16",
    "torchvision:swin_t",
    "hf:bert-embeddings",
]


class Functional(nn.Module):
    """Functional activations, pooling and dropout, as in most research code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        x = nn.functional.dropout(nn.functional.gelu(self.second(x)), 0.1, self.training)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Shared(nn.Module):
    """One activation and one convolution, used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.conv, self.head = nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.act(self.conv(x) + x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class Attention(nn.Module):
    """``mha(...)[0]``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mha = nn.LayerNorm(32), nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        logits: Tensor = self.head((x + self.mha(h, h, h)[0]).mean(1))
        return logits


def build(name: str) -> tuple[nn.Module, Any]:
    """A network with random weights, and a batch of four."""
    torch.manual_seed(SEED)
    library, _, kind = name.partition(":")
    if library == "own":
        made = {"functional": Functional, "shared": Shared, "mha": Attention}[kind]()
        return made, torch.randn(4, 16, 32) if kind == "mha" else pictures(4, 16)
    if library == "hf":
        return hugging_face(kind)
    if library == "timm":
        import timm

        try:
            return timm.create_model(kind, img_size=96), pictures(4, 96)
        except TypeError:
            size = 224 if kind in ("levit_128s", "mobilevit_xs", "pvt_v2_b0") else 96
            return timm.create_model(kind), pictures(4, size)
    from torchvision import models
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    x = pictures(4, 96)
    if kind == "lraspp":
        return models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None), x
    if kind == "fcn":
        return models.segmentation.fcn_resnet50(weights=None, weights_backbone=None), x[..., :64, :64]
    if kind == "fpn":
        return resnet_fpn_backbone(backbone_name="resnet18", weights=None), x
    options = {"image_size": 96} if kind == "vit_b_16" else {}
    return models.get_model(kind, weights=None, **options), x


def hugging_face(kind: str) -> tuple[nn.Module, Any]:
    import transformers as hf

    tokens = {"input_ids": torch.randint(0, 200, (4, 12)), "attention_mask": torch.ones(4, 12, dtype=torch.long)}
    small = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "initializer_range": 0.15,
    }
    if kind.startswith("bert"):
        config = hf.BertConfig(**small, vocab_size=200)
        config._attn_implementation = "eager" if "eager" in kind else "sdpa"
        if "embeddings" in kind:
            tokens = {"inputs_embeds": torch.randn(4, 12, 48), "attention_mask": tokens["attention_mask"]}
        return hf.BertModel(config), tokens
    if kind == "vit":
        config = hf.ViTConfig(**small, image_size=32, patch_size=8)
        return hf.ViTForImageClassification(config), {"pixel_values": pictures(4, 32)}
    if kind == "segformer":
        config = hf.SegformerConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, num_attention_heads=[1, 2, 2, 4],
                                    decoder_hidden_size=16, num_labels=5)  # fmt: skip
        return hf.SegformerForSemanticSegmentation(config), {"pixel_values": pictures(4, 64)}
    if kind == "gpt2":
        config = hf.GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=200, n_positions=32, use_cache=False,
                               bos_token_id=0, eos_token_id=0)  # fmt: skip
        return hf.GPT2LMHeadModel(config), {"input_ids": tokens["input_ids"]}
    config = hf.LlamaConfig(**small, num_key_value_heads=2, vocab_size=200, use_cache=False)
    return hf.LlamaForCausalLM(config), {"input_ids": tokens["input_ids"]}


def pictures(count: int, size: int) -> Tensor:
    """Smooth random pictures of different brightness and contrast, as photographs are; (count, 3, size, size)."""
    coarse = [nn.functional.interpolate(torch.randn(count, 3, n, n), size, mode="bilinear") for n in (3, 8, 24)]
    contrast, shift = torch.rand(count, 1, 1, 1) * 1.5 + 0.2, torch.randn(count, 1, 1, 1)
    return (sum(coarse[1:], coarse[0]) + 0.3 * torch.randn(count, 3, size, size)) * contrast + shift


def sharpened(model: nn.Module) -> nn.Module:
    """Queries and keys of standard deviation 1.5 on normalized inputs, so that attention is not uniform."""

    def scale(weight: Tensor, inputs: int) -> None:
        weight.mul_(1.5 / (float(weight.std()) * inputs**0.5))

    with torch.no_grad():
        for name, value in model.named_parameters():
            part = name.rpartition(".")[0].rpartition(".")[2]
            if value.dim() != 2:
                continue
            if name.endswith("in_proj_weight") or part == "qkv":
                scale(value[: value.shape[0] // 3 * 2], value.shape[1])
            elif part == "c_attn":  # GPT-2 keeps its weights transposed
                scale(value[:, : value.shape[1] // 3 * 2], value.shape[0])
            elif part in ("query", "key", "q_proj", "k_proj", "q", "k"):
                scale(value, value.shape[1])
    return model


def calibrated(model: nn.Module, x: Any) -> nn.Module:
    """Batch norms with the statistics of these images, so that signals have a size."""
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        model(**x) if isinstance(x, dict) else model(x)
    return model.eval()


def convert(name: str) -> tuple[Any, Any, Any, float]:
    model, x = build(name)
    calibrated(sharpened(model.eval()), x)
    start = time.perf_counter()
    qann = ps.quantize(model, ps.QuantSpec(negative=7, positive=8, init="mse"), example=x)
    seconds = time.perf_counter() - start
    ps.calibrate(qann, [x])
    return qann, ps.convert(qann), x, seconds


def first_timestep(name: str) -> dict[str, Any]:
    qann, snn, x, seconds = convert(name)
    proof = ps.verify(qann, snn, [x], scope=False)
    void = [site for site, row in proof.sites.items() if not row.counts]
    route = str(qann.network.meta["route"])
    print(
        f"{name}: {route.partition(';')[0]}, {len(proof.sites)} sites, {proof.compared} codes compared, "
        f"{proof.diverged} differ, exact {proof.exact}, {len(void)} sites void {void[:2]}, quantize {seconds:.1f} s",
        flush=True,
    )
    return {"route": route, "sites": len(proof.sites), "compared": proof.compared, "different": proof.diverged,
            "exact": proof.exact, "void": void, "quantize_s": round(seconds, 2)}  # fmt: skip


def theorem(name: str, steps: tuple[int, ...]) -> dict[str, Any]:
    qann, snn, x, _ = convert(name)
    x = {key: value[:2] for key, value in x.items()} if isinstance(x, dict) else x[:2]
    rows: dict[str, Any] = {}
    for precision, kind in (("fp32", torch.float32), ("fp64", torch.float64)):
        qann, snn = qann.to(kind), snn.to(kind)
        for total in steps:
            torch.manual_seed(SEED + total)
            for way in ("repeated", "varying"):
                proof = prove(qann, snn, x, kind, total, way)
                rows[f"{precision} T={total} {way}"] = row = {
                    "compared": proof.compared,
                    "different": proof.different,
                    "diverged": proof.diverged,
                    "worst_margin": proof.worst_margin,
                    "output_difference": proof.output_difference,
                }
                print(f"  {name} {precision} T={total} {way}: {row}", flush=True)
    return rows


def prove(qann: Any, snn: Any, x: Any, kind: torch.dtype, total: int, way: str) -> ps.Proof:
    def cast(value: Tensor) -> Tensor:
        return value.to(kind) if value.is_floating_point() else value

    inputs = {name: cast(value) for name, value in x.items()} if isinstance(x, dict) else cast(x)
    if way == "repeated":
        return ps.verify(qann, snn, [inputs], timesteps=total, scope=False)

    def frames(value: Tensor) -> Tensor:
        copies = torch.stack([value] * total, dim=1)
        return copies + 0.5 * torch.randn_like(copies) if value.is_floating_point() else copies

    moving = {name: frames(v) for name, v in inputs.items()} if isinstance(inputs, dict) else frames(inputs)
    return ps.verify(qann, snn, [moving], timesteps=total, time_dim=1, scope=False)


@torch.no_grad()
def control(name: str, steps: tuple[int, ...]) -> dict[str, Any]:
    """Codes of the refined quantized network that float32 and float64 decide differently, inputs of each site alike."""
    qann, _, x, _ = convert(name)
    x = {key: value[:2] for key, value in x.items()} if isinstance(x, dict) else x[:2]
    rows: dict[str, Any] = {}
    for total in steps:
        codes = codes_of(ps.refine(qann, total).eval(), x)
        exact = codes_of(copy.deepcopy(ps.refine(qann, total)).eval().double(), doubled(x), forced=codes)
        rows[f"control T={total}"] = row = {
            "compared": sum(values.numel() for values in codes.values()),
            "different": sum(int((values != exact[site].to(values)).sum()) for site, values in codes.items()),
        }
        print(f"  {name} T={total}: {row}", flush=True)
    return rows


def doubled(x: Any) -> Any:
    """Inputs in float64."""
    if isinstance(x, dict):
        return {name: doubled(value) for name, value in x.items()}
    return x.double() if x.is_floating_point() else x


def codes_of(qann: Any, x: Any, forced: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What every site encodes; with ``forced`` it hands on the value of these codes instead."""
    found: dict[str, Tensor] = {}

    def look(name: str) -> Any:
        def hook(site: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            found[name] = site.encode(inputs[0])
            return None if forced is None else site.decode(forced[name].to(output)).to(output.dtype)

        return hook

    handles = [site.register_forward_hook(look(name)) for name, site in qann.sites().items()]
    qann(**x) if isinstance(x, dict) else qann(x)
    for handle in handles:
        handle.remove()
    return found


def add_control(names: list[str], steps: tuple[int, ...]) -> None:
    """Merge the rows of :func:`control` into the kept ones of :func:`theorem`."""
    kept = json.loads((RESULTS / "theorem.json").read_text())
    for name in names:
        kept["results"].setdefault(name, {}).update(control(name, steps))
        keep("theorem", kept | {"control_conditions": conditions(SEED)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--others", action="store_true", help="networks that were not named beforehand")
    parser.add_argument("--theorem", action="store_true")
    parser.add_argument("--control", action="store_true", help="added to the rows of --theorem")
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 32])
    parser.add_argument("--keep", help="name of the result file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    names = options.names or (THEOREM if options.theorem or options.control else OTHERS if options.others else NAMED)
    if options.control:
        add_control(names, tuple(options.steps))
        return
    results: dict[str, Any] = {}
    kept = options.keep or (
        "theorem" if options.theorem else "other_architectures" if options.others else "architectures"
    )
    for name in names:
        results[name] = theorem(name, tuple(options.steps)) if options.theorem else first_timestep(name)
        keep(kept, {"conditions": conditions(SEED), "results": results})
    if not options.theorem:
        raise SystemExit(sum(not row["exact"] for row in results.values()))


if __name__ == "__main__":
    main()
