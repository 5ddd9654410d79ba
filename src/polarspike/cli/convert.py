"""``polarspike convert``: somebody's float network, or the file of a quantized one -> the file of a spiking network."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from polarspike.allocation.candidates import Resource
from polarspike.calibration import calibrate
from polarspike.checkpoint import save
from polarspike.cli.command import options_given, refuse, show, tell
from polarspike.cli.files import load_quantized, reading_of
from polarspike.cli.network import Network, NetworkCommand
from polarspike.cli.refinement import Likeness, equalized, improved, within_budget
from polarspike.conversion import convert
from polarspike.equivalence import verify
from polarspike.errors import CalibrationError, CheckpointError, SpecError
from polarspike.plan import Plan
from polarspike.proofs.proof import Proof
from polarspike.quantization import inspect, quantize
from polarspike.quantized import QuantizedNetwork
from polarspike.readings import conversion_for
from polarspike.sites import require_exact_codes
from polarspike.specs import ConvertSpec, Neuron

_ROWS, _WIDTH = 6, 120
#: What also the conversion of a quantized network's file reads.
_OF_FILES = ("model", "snn", "neuron", "max_spikes_per_step", "window", "force", "debug")


@dataclass(frozen=True, kw_only=True)
class Convert(NetworkCommand):
    """Convert a trained network to a spiking network: calibrate it on images, prove it, and write it; no labels.

    With the file of a quantized network, convert that. The exit code is 1 if a proof fails.

    Args:
        snn: the file to write.
        qann: write the quantized network, too.
        neuron: "polarity": T steps refine the grid T-fold; "holding": the grid stays, and the answer equals the quantized
            network's on the mean input at every T.
        max_spikes_per_step: the most spikes of either sign that hardware fires in one step (1: ternary); what is left waits
            for later steps, so that answers come late. None for no limit.
        window: a stream starts again after so many steps; None for an endless running mean.
        timesteps: numbers T to prove and to compare with the float network; T = 1 is always among them.
        equalize: balance channels across layers before calibration.
        correct_bias: shift biases after calibration, so that every mean is what it was.
        reconstruct: fit weights and steps layer by layer after calibration, without labels.
        budget: the most that an image may cost at T = 1, in units of --resource: each site then gets its own levels, at most
            those of --quant, and its own step. What --reconstruct, --correct-bias and --distill do afterwards moves
            codes again, by some percent. 0 for none.
        resource: what the budget limits: events, unit spikes, joules (convention b, int8) or bits.
        distill: optimizer steps of distillation from the float network on the images, last of all and without labels; 0 for
            none. Outputs (batch, classes) are read as scores of classes. The more images, the better (--images-count).
        force: replace files that exist.
    """

    snn: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SNN.safetensors")]
    qann: Path | None = None
    neuron: Neuron = "polarity"
    max_spikes_per_step: int | None = None
    window: int | None = None
    timesteps: tuple[int, ...] = (1,)
    equalize: bool = False
    correct_bias: bool = False
    reconstruct: bool = False
    budget: float = 0.0
    resource: Resource = "spikes"
    distill: int = 0
    force: bool = False

    def execute(self) -> int:
        self._require_places()
        fires = ConvertSpec(
            neuron=self.neuron, max_spikes_per_step=self.max_spikes_per_step, window=self.window
        )  # refused before any work
        if self.names_a_file:
            return self._convert_file(fires)
        if any(t < 1 for t in self.timesteps):
            raise SpecError(f"--timesteps: expected numbers of at least 1, got {' '.join(map(str, self.timesteps))}")
        if self.distill < 0:
            raise SpecError(f"--distill: expected a number of steps of at least 0, got {self.distill}")
        if self.budget < 0:
            raise SpecError(f"--budget: expected a number of at least 0, got {self.budget:g}")
        if self.images is None and (self.correct_bias or self.reconstruct or self.budget or self.distill):
            raise SpecError(
                "--correct-bias, --reconstruct, --budget and --distill: expected --images, on which they compare two "
                "networks"
            )
        fires.require_within_window("convert", max(1, *self.timesteps))
        refuse(
            {"--resource": self.resource != "spikes" and not self.budget}, "without --budget it is the unit of nothing"
        )
        refuse(
            {"--timesteps": self.images is None and set(self.timesteps) != {1}},
            "without --images nothing is proved",
        )
        network = self.prepare()
        qann = self._quantized(network)
        snn = convert(qann, fires)
        failed: list[int] = []
        if network.batches is not None:
            for t in sorted({1, *self.timesteps}):
                proof = verify(qann, snn, network.batches, t, scope=False)
                failed += [] if proof.exact or (t > 1 and proof.within_rounding) else [t]
                show(in_short_proof(proof))
                show(Likeness.measure(network.model, snn, network.batches, t))
        if self.qann is not None:
            save(qann, self.qann)
            tell(f"written: {self.qann}")
        save(snn, self.snn)
        tell(f"written: {self.snn}")
        if failed:
            tell(f"not exact at T = {', '.join(map(str, failed))}: this is a defect of polarspike, please report it")
        return 1 if failed else 0

    def _quantized(self, network: Network) -> QuantizedNetwork:
        """Quantized, calibrated, and improved as asked for; what it decides is shown."""
        model = network.model
        if self.equalize:
            model = equalized(model, network.example, network.batches)
        qann = quantize(model, self.quant, example=network.example)
        require_exact_codes("convert", qann.sites(), max(1, *self.timesteps))  # before hours of improvements
        show(in_short(inspect(model, self.quant, network.example)))
        qann.notes = dict(network.notes)
        try:
            rows = calibrate(qann, network.batches)
        except CalibrationError as error:
            if network.batches is not None:
                raise
            raise CalibrationError(
                f"{error}. Without --images only the laws that batch norms promise are known"
            ) from error
        show(f"calibrated ({self.quant.init}) on {self._images_in_words(network)}:")
        for row in rows[:_ROWS]:
            show(f"  {row}")
        if len(rows) > _ROWS:
            show(f"  ... and {len(rows) - _ROWS} more sites (all of them: polarspike diagnose)")
        if network.batches is not None:
            if self.budget:
                show(within_budget(qann, network.batches, self.budget, self.resource))
            improved(
                qann,
                network.batches,
                reconstruction=self.reconstruct,
                bias_correction=self.correct_bias,
                distillation=self.distill,
            )
        return qann

    def _images_in_words(self, network: Network) -> str:
        if network.batches is None:
            return "the laws of the batch norms"
        shape = "x".join(map(str, network.preprocessing.shape or ()))
        return f"{sum(map(len, network.batches))} images of {shape} ({self.images})"

    def _convert_file(self, fires: ConvertSpec) -> int:
        asked = [name for name in options_given(self) if name not in _OF_FILES]
        try:
            qann = load_quantized(Path(self.model))
        except CheckpointError as error:
            if Path(self.model).exists() or Path(self.model).suffix:
                raise
            raise CheckpointError(
                f"{error}; where it is the name of a network, give --weights FILE, or --random-weights to try it out"
            ) from error
        if asked:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
            raise SpecError(
                f"{self.model}: a quantized network is calibrated already; leave {flags} out, it takes --neuron, "
                "--max-spikes-per-step, --window and --force alone"
            )
        reading = conversion_for(reading_of(Path(self.model), qann)).reading
        snn = convert(qann, dataclasses.replace(fires, reading=reading))
        save(snn, self.snn)
        show(snn.report)
        tell(f"written: {self.snn}")
        return 0

    def _require_places(self) -> None:
        """Refuse places that cannot be written, before any work.

        Raises:
            CheckpointError: a file is there already, two names are the same, or a folder is missing or not writable.
        """
        places = [self.snn] if self.qann is None else [self.snn, self.qann]
        read = [Path(self.model), *([self.weights] if self.weights else [])]
        if len({place.resolve() for place in places}) < len(places):
            raise CheckpointError(
                f"{self.qann}: expected two files to create, --qann names the spiking network's; rename it"
            )
        for place in places:
            is_read = place.exists() and any(other.exists() and place.samefile(other) for other in read)
            if place.exists() and (not self.force or is_read):
                repair = "give another name" if self.force else "give another name, or --force to replace it"
                raise CheckpointError(f"{place}: expected a file to create, it exists already; {repair}")
            folder = place.parent
            if not folder.is_dir() or not os.access(folder, os.W_OK):
                raise CheckpointError(
                    f"{place}: cannot be written: expected a folder that exists and is writable, got {folder}; create it"
                )


def in_short(plan: Plan) -> str:
    """Three lines on a plan."""
    levels = Counter(site.spec.levels for site in plan.sites)
    notes = Counter(row.note for row in plan.analog)
    spiking = ", ".join(f"{count} with levels {pair}" for pair, count in levels.most_common())
    analog = ", ".join(f"{count} {note}" for note, count in notes.most_common(3)) or "none"
    return "\n".join(
        [
            textwrap.shorten(f"captured by torch.{plan.route}", _WIDTH, placeholder=" ..."),
            f"{len(plan.sites)} sites become spiking: {spiking}",
            f"{len(plan.analog)} operators stay analog at some T: {analog}",
            f"accumulate-only: {plan.accumulate_share(1):.1%} of the multiplications at T = 1, "
            f"{plan.accumulate_share(2):.1%} at T > 1 (all of it: polarspike inspect)",
        ]
    )


def in_short_proof(proof: Proof) -> str:
    """One line on a proof."""
    verdict = (
        "EXACT"
        if proof.exact
        else "NOT EXACT"
        if proof.timesteps == 1 or not proof.within_rounding
        else (f"equal to rounding (at most {proof.worst_margin:.1e} steps from a boundary)")
    )
    void = f"; VOID at {len(proof.void)} sites: too few different codes, or events" if proof.void else ""
    return f"T={proof.timesteps}: {proof.compared} codes compared, {proof.different} different: {verdict}{void}"
