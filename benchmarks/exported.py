"""Does an exported file answer as the spiking network does? Accuracy on all 10,000 test images of Fashion-MNIST.

    python benchmarks/exported.py [--networks resnet plain vit resnet9-wide] [--seeds 0 1 2]

The float networks of the studies (``resnet``, ``plain``, ``vit`` at 14x14 pixels; ``resnet9-wide`` at full size), quantized
without training to 16 levels per site ((0, 15); (7, 8) at signed sites; mean square error), each converted and written as
``onnx-int8``, ``integer``, ``onnx-float`` and ``torch-export``. 16 batches of training images show whole numbers how large
signals become; nothing is chosen on test images. Codes: of the integer network against the spiking network (weights are
rounded to 8 bits), and of ONNX Runtime against the integer network as NumPy defines it, until 10 million are compared.
"""

from __future__ import annotations

import argparse
import io
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent / "studies"))
from _common import conditions, keep, kept
from _setting import NETWORKS, Setting, parent, setting

import polarspike as ps
from polarspike.exporters import runtime
from polarspike.exporters.writing import Format

EPOCHS = {"resnet9-wide": 10}
FORMATS: tuple[Format, ...] = ("onnx-int8", "integer", "onnx-float", "torch-export")


def converted(network: str, seed: int, where: Setting) -> tuple[torch.nn.Module, ps.SpikingNetwork]:
    """The float network, and its spiking network of 16 levels."""
    model = parent(network, seed, where, EPOCHS.get(network, 8))
    images = where.batches(where.train, 2000)
    example = next(iter(images))[0][:2]
    spec = ps.QuantSpec(0, 15, init="mse") if network != "vit" else ps.QuantSpec(7, 8, init="mse")
    qann = ps.quantize(model, spec, example=example)
    ps.calibrate(qann, images)
    qann.notes["normalization"] = where.normalization.to_dict()
    return model, ps.convert(qann)


def opened(path: Path, name: str) -> Callable[[torch.Tensor], np.ndarray[Any, Any]]:
    """What says the class of each image, from a file."""
    if name == "torch-export":
        module = torch.export.load(io.BytesIO(path.read_bytes())).module()
        return lambda images: module(images).argmax(1).numpy()
    session = runtime.session(path)
    given = session.get_inputs()[0].name
    return lambda images: session.run(None, {given: images.numpy()})[0].argmax(1)


def measure(network: str, seed: int) -> dict[str, Any]:
    """All formats of one network."""
    where = setting("full" if network.startswith("resnet9") else "small")
    model, snn = converted(network, seed, where)
    shown = [images for images, _ in where.batches(where.train, 4000)]
    row: dict[str, Any] = {"float_bytes": sum(4 * value.numel() for value in model.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path] = {}
        for kind in FORMATS:
            files[kind] = Path(folder) / f"net.{kind}"
            report = ps.export(snn, files[kind], kind, shown[0], shown)
            row[kind] = {
                "bytes": report.bytes,
                "codes": report.codes,
                "codes_rounded": report.codes_rounded,
                "codes_wrong": report.codes_wrong,
            }
        right: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in ("ann", "snn", *FORMATS)}
        said: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in right}
        # The NumPy meaning is slow; ONNX Runtime has just been shown to compute the same codes.
        files_say = {name: opened(files[name], name) for name in FORMATS if name != "integer"}
        with torch.no_grad():
            for images, labels in where.batches(where.test):
                found = {"ann": model(images).argmax(1).numpy(), "snn": snn(images).argmax(1).numpy()}
                found |= {name: say(images) for name, say in files_say.items()}
                for name, classes in found.items():
                    said[name].append(classes)
                    right[name].append(classes == labels.numpy())
    for name in ("ann", "snn", *(name for name in FORMATS if name != "integer")):
        correct = np.concatenate(right[name])
        row.setdefault(name, {})["accuracy"] = 100 * float(correct.mean())
        if name not in ("ann", "snn"):
            gain = correct.astype(float) - np.concatenate(right["snn"])
            row[name]["against_snn"] = 100 * float(gain.mean())
            row[name]["standard_error"] = 100 * float(gain.std() / len(gain) ** 0.5)
            row[name]["decisions_differ"] = int((np.concatenate(said[name]) != np.concatenate(said["snn"])).sum())
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=["resnet", "plain", "vit", "resnet9-wide"], choices=NETWORKS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    options = parser.parse_args()
    results = kept("exported")
    for network, seed in itertools.product(options.networks, options.seeds):
        row = results[f"{network}, seed {seed}"] = measure(network, seed)
        keep("exported", {"conditions": conditions(seed), "results": results})
        print(f"{network}, seed {seed}: ANN {row['ann']['accuracy']:.2f}, SNN at T = 1 {row['snn']['accuracy']:.2f}")
        for name in FORMATS:
            if name == "integer":
                continue
            told = row[name]
            codes = ""
            if told["codes"]:
                share = 100 * told["codes_rounded"] / told["codes"]
                codes = f"; of {told['codes']} codes {share:.2f} % rounded otherwise, {told['codes_wrong']} wrong"
            print(
                f"    {name:12} {told['accuracy']:.2f} ({told['against_snn']:+.2f} +- {told['standard_error']:.2f}, "
                f"{told['decisions_differ']} decisions differ), {told['bytes'] / row['float_bytes']:.3f}x the size{codes}",
                flush=True,
            )


if __name__ == "__main__":
    main()
