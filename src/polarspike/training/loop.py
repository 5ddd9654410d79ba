"""A plain training loop for float and quantized networks that survives a kill: a resumed run equals an unbroken one.

With distillation weight ``d``, activity weight ``c`` and ``a`` spikes per neuron (:mod:`polarspike.training.activity`)::

    loss = (1 - d) cross_entropy(z, target) + d t^2 KL(softmax(z_teacher / t) || softmax(z / t)) + c a

What moves the weights, and how fast, is in :mod:`polarspike.training.optimization`; of which timestep z is the answer, where
several are trained for, in :mod:`polarspike.training.refinement`.

Nothing random crosses the border between two epochs: epoch ``e`` starts from ``epoch_seed(seed, e)``, and the
rate depends on the step's number alone. So weights, buffers, their average and the optimizers' states are all that a
checkpoint has to hold.
Distillation: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Collection, Iterable, Sized
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from polarspike.common.inputs import Inputs, rows_of, unsound_input
from polarspike.common.modules import apply, at_rest, device_of, require_ordinary
from polarspike.common.signatures import Signature
from polarspike.errors import InputError, RunError, SpecError
from polarspike.evaluation import check_answer, evaluate, read_batch
from polarspike.parallel import distributed
from polarspike.parallel.distributed import Share
from polarspike.runs import RunDirectory
from polarspike.spiking import SpikingNetwork
from polarspike.training.activity import Activity, counted
from polarspike.training.course import Course
from polarspike.training.history import Epoch, History, epochs_of, tell_of_absurd
from polarspike.training.optimization import set_rates, trainable
from polarspike.training.randomness import Stream, epoch_seed, randomness_kept, seed_everything
from polarspike.training.state import bring_back, keep, table_of
from polarspike.training_spec import TrainSpec

FORMAT = "polarspike-training"
VERSION = 1
_REPAIR = "lower TrainSpec.learning_rate, or lengthen warmup_epochs; the last checkpoint, if any, is intact"


def fit(
    model: nn.Module,
    train_loader: Iterable[Any],
    spec: TrainSpec | None = None,
    *,
    validate: Iterable[Any] | None = None,
    teacher: nn.Module | None = None,
    run: RunDirectory | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train ``model`` in place on the device where it is, and leave it in evaluation mode.

    Args:
        model: any module that answers (batch, classes): a float network or a quantized one.
        train_loader: batches ``(inputs, target)`` as :func:`polarspike.evaluate` reads them; it knows its length. What
            is random in it comes from torch's, NumPy's or Python's global generator, or from a ``generator`` of the
            loader or of its sampler: all are seeded at the start of every epoch, and put back at the end. In several
            processes each takes its rows of every batch; of a loader with a ``DistributedSampler``, whole batches. What
            the model draws (dropout) each process draws from a stream of its own. Where a batch is cut (by several
            processes, or ``TrainSpec.accumulation``), so is every input with a row for each sample; what is the same for
            all samples stays whole: a captured network knows it, a float one is taken to have none of so many rows.
        spec: how; ``TrainSpec()`` if not given.
        validate: batches to evaluate after every epoch, in float32.
        teacher: the network to distil from, with weight 0.5 unless ``spec.distillation`` says otherwise. Not changed.
        run: where the log and a checkpoint after each epoch go; without it nothing is written.
        resume: continue from the checkpoint of ``run`` if there is one. On the CPU (with the same number of threads)
            the result is bit for bit that of a run never interrupted. Buffers outside ``state_dict`` are not kept.
        progress: show a progress bar where standard error is a terminal.

    Raises:
        SpecError: spec and arguments contradict each other.
        InputError: the loader is empty or has no length, or a batch is not what is described above.
        RunError: the loss or a weight became NaN or infinite; or the run cannot be continued, because the spec, the
            model or the number of steps per epoch or of processes is another one, or because the model keeps state that
            is no tensor.
        CheckpointError: the checkpoint of ``run`` is damaged.

    Warns:
        PolarspikeWarning: once, of a loss that is finite and beyond all sense.
    """
    if spec is not None and not isinstance(spec, TrainSpec):
        raise SpecError(f"fit: expected a TrainSpec, got {type(spec).__name__}")
    spec = (spec or TrainSpec()).distilling(teacher is not None)
    steps = _steps_per_epoch(train_loader)
    if len(every := set(distributed.gathered(steps))) > 1:
        raise InputError(
            f"fit: expected as many batches in every process, got {sorted(every)}; give each the same loader"
        )
    _check_arguments(model, spec, teacher, run, resume)
    distributed.require_all_samples(validate)
    course = Course(model, spec)
    history: list[Epoch] = []
    identity: dict[str, Any] = {}
    if run is not None:
        if getattr(train_loader, "persistent_workers", False):
            raise SpecError(
                "fit: the workers of the training loader persist, and carry random state from epoch to epoch that no "
                "checkpoint can hold; build it with persistent_workers=False, or train without run"
            )
        identity = {"format": FORMAT, "version": VERSION, "spec": spec.to_dict(), "steps_per_epoch": steps}
        identity |= {"processes": distributed.world_size(), "model": table_of(model)}
        # The main process decides: one that asks whether the directory is there may ask when another has just made it.
        if distributed.common(resume and run.checkpoint_path.exists()):
            with distributed.together():
                records = bring_back(run, course, identity)
            history = epochs_of(records, run)
        run.configure(train=spec)
        done = len(history)
        run.keep_records(lambda record: record.get("epoch", 0) <= done)
    try:
        with (
            randomness_kept(train_loader),
            at_rest(*([] if teacher is None else [teacher])),
            course.refinement.lasting(),
            counted(course.trained) if spec.activity else contextlib.nullcontext() as activity,
        ):
            for epoch in range(len(history) + 1, spec.epochs + 1):
                seed_everything(epoch_seed(spec.seed, epoch), train_loader, epoch)
                passed = _train_epoch(course, train_loader, spec, epoch, steps, teacher, activity, progress)
                course.gather()
                _check_weights(model, epoch)
                if validate is not None:
                    with course.shown():
                        held_out = evaluate(_AsTrained(model), validate, progress=progress).accuracy[1]
                    passed = dataclasses.replace(passed, validation_accuracy=held_out)
                tell_of_absurd(passed, history)
                history.append(passed)
                if run is not None:
                    # The log first: a kill in between leaves a record too many, which the next start drops.
                    run.append(dataclasses.asdict(passed))
                    records = [dataclasses.asdict(record) for record in history]
                    metadata = {**identity, "epoch": epoch, "history": records}
                    keep(run, course, metadata)
        if course.average is not None:
            course.average.give(model)
    finally:
        course.trained.zero_grad(set_to_none=True)
        model.eval()
    return History(tuple(history))


def training_loss(logits: Tensor, target: Tensor, spec: TrainSpec, teacher_logits: Tensor | None = None) -> Tensor:
    """The loss of one batch in float32: logits (batch, classes), target (batch,) or shares (batch, classes), to a scalar."""
    logits = logits.float()
    loss = F.cross_entropy(logits, target, label_smoothing=spec.label_smoothing)
    if teacher_logits is None:
        return loss
    student = F.log_softmax(logits / spec.temperature, dim=1)
    master = F.log_softmax(teacher_logits.float() / spec.temperature, dim=1)
    # The factor t^2 keeps the size of this gradient when the temperature changes.
    weight = spec.distilling(True).distillation or 0.0
    distance = spec.temperature**2 * F.kl_div(student, master, reduction="batchmean", log_target=True)
    return (1 - weight) * loss + weight * distance


class _AsTrained(nn.Module):
    """A model that is evaluated as it is trained: a network through time on all of its frames or steps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def _train_epoch(
    course: Course,
    loader: Iterable[Any],
    spec: TrainSpec,
    epoch: int,
    steps: int,
    teacher: nn.Module | None,
    activity: Activity | None,
    progress: bool,
) -> Epoch:
    model = course.trained
    device, shared = device_of(model), _shared_inputs(model)
    own: Stream | None = None
    if distributed.world_size() > 1:  # what the network draws is for the rows of this process alone
        own = Stream(epoch_seed(spec.seed, epoch, distributed.rank()), device)
    total_loss, total_spikes, images, step, rate = 0.0, 0.0, 0.0, 0, 0.0
    correct = torch.zeros((), dtype=torch.int64, device=device)
    model.train()
    start = time.perf_counter()
    disable = None if progress and distributed.is_main() else True  # None: where standard error is no terminal
    portions = distributed.own_portions(loader)
    bar = tqdm(portions, f"epoch {epoch}/{spec.epochs}", total=steps, unit="batch", leave=False, disable=disable)
    apart = distributed.shares_samples(loader)
    for step, (batch, whole) in enumerate(bar, start=1):
        where = f"fit, epoch {epoch}, step {step}"
        if step > steps:
            raise InputError(f"{where}: the loader has length {steps} but gives more batches; repair its __len__")
        inputs, target = read_batch(batch, device, where, shares=True)
        index = (epoch - 1) * steps + step
        rate = set_rates(course.optimizers, spec, index - 1, steps)
        course.refinement.turn(index)
        inputs, target, share = _own_part(inputs, target, whole, apart, shared)
        model.zero_grad(set_to_none=True)
        for rows, samples in share.pieces(spec.accumulation):
            part, wanted = rows_of(inputs, rows, len(target), shared), target[rows]
            guide: Tensor | None = None
            if teacher is not None:
                # An autocast region of its own: weights cast without gradients must not be reused by the student.
                with torch.no_grad(), _autocast(spec, device):
                    guide = apply(teacher, part)
                check_answer(guide, wanted, f"{where}, teacher")
            if activity is not None:
                activity.clear()
            with _autocast(spec, device), contextlib.nullcontext() if own is None else own.drawing():
                logits = apply(course.forward, part)
            check_answer(logits, wanted, where)
            if guide is not None and guide.shape != logits.shape:
                raise InputError(
                    f"{where}, teacher: expected {logits.shape[1]} classes as the model has, got {guide.shape[1]}; give a "
                    "teacher of the same classes"
                )
            loss = training_loss(logits, wanted, spec, guide)
            if activity is not None:
                spikes = activity.mean()
                loss = loss + spec.activity * spikes
                total_spikes += spikes.item() * samples
            value = loss.item()
            if not math.isfinite(value):
                _refuse_loss(model, part, guide, where, value)
            # Gradients are averaged over processes, and summed over pieces: the mean over the whole batch.
            weight = samples * distributed.world_size() / share.whole
            course.scaler.scale(loss if weight == 1 else loss * weight).backward()
            total_loss += value * samples
            right = logits.argmax(dim=1) == (wanted if wanted.ndim == 1 else wanted.argmax(dim=1))
            correct += right[:samples].sum()
            images += samples
        course.move(index)
    if step < steps:
        raise InputError(f"fit, epoch {epoch}: the loader has length {steps} but gave {step} batches")
    course.share_buffers()
    seconds = time.perf_counter() - start
    total_loss, total_spikes, hits, images = distributed.summed([total_loss, total_spikes, int(correct), images])
    spikes_per_neuron = None if activity is None else total_spikes / images
    return Epoch(epoch, total_loss / images, rate, hits / images, None, seconds, images / seconds, spikes_per_neuron)


def _shared_inputs(model: nn.Module) -> frozenset[str]:
    """What a captured network knows to be the same for all samples of a batch; of any other model shapes say it."""
    signature = getattr(model, "signature", None)
    return signature.shared if isinstance(signature, Signature) else frozenset()


def _own_part(
    inputs: Inputs, target: Tensor, whole: int | None, apart: bool, shared: Collection[str]
) -> tuple[Inputs, Tensor, Share]:
    """The rows that this process trains on: all of its own part of a ``whole``, or of a batch that it drew ``apart``."""
    if whole is not None:
        return inputs, target, Share.of(whole)
    if apart and distributed.world_size() > 1:
        sizes = distributed.gathered(len(target))
        return inputs, target, Share(len(target), max(sizes), sum(sizes))
    share = Share.of(len(target))
    if share.own == len(target):
        return inputs, target, share
    rows = distributed.own_rows(len(target))
    return rows_of(inputs, rows, len(target), shared), target[rows], share


def _autocast(spec: TrainSpec, device: torch.device) -> torch.autocast:
    dtype = torch.float16 if spec.precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=spec.precision != "fp32")


def _steps_per_epoch(loader: Iterable[Any]) -> int:
    if not isinstance(loader, Sized):
        raise InputError(
            f"fit: expected a training loader with a length (the schedule needs it), got {type(loader).__name__}; "
            "give a DataLoader over a sized data set, or a list of batches"
        )
    if len(loader) == 0:
        raise InputError("fit: the training loader is empty; check the data, its split, batch size and drop_last")
    return len(loader)


def _check_arguments(
    model: nn.Module, spec: TrainSpec, teacher: nn.Module | None, run: RunDirectory | None, resume: bool
) -> None:
    if isinstance(model, SpikingNetwork):
        raise SpecError(
            "fit: the spikes of a converted network pass no gradient on; train its quantized network before the conversion, "
            "or polarspike.unroll(snn) through time, on sequences"
        )
    if not torch.is_grad_enabled():
        raise SpecError(
            "fit: gradients are switched off here (torch.no_grad or inference_mode); call it outside of that"
        )
    require_ordinary("fit", model)
    if not trainable(model):
        raise SpecError(f"fit: no parameter of this {type(model).__name__} requires a gradient; nothing can be trained")
    half = next((n for n, p in trainable(model).items() if p.dtype in (torch.float16, torch.bfloat16)), None)
    if spec.precision == "fp16" and half is not None:
        raise SpecError(
            f"fit: precision='fp16' trains float32 weights, got half precision at {half!r}; use model.float()"
        )
    if bool(spec.distillation) != (teacher is not None):
        raise SpecError(
            f"fit: TrainSpec.distillation is {spec.distillation} {'but no' if teacher is None else 'and a'} teacher is "
            "given; give both (a weight above 0 and teacher=...) or neither"
        )
    if teacher is not None:
        if set(teacher.modules()) & set(model.modules()):
            raise SpecError("fit: the teacher shares modules with the model; give a copy.deepcopy of it")
        if (there := device_of(teacher)) != (here := device_of(model)):
            raise SpecError(f"fit: the model is on {here}, its teacher on {there}; move the teacher to {here}")
    if resume and run is None:
        raise SpecError("fit: resume=True needs the run to continue; give run=RunDirectory(path, resume=True)")
    if run is not None and not resume and run.checkpoint_path.exists():
        raise RunError(f"{run.checkpoint_path}: there is a checkpoint; continue it with --resume (resume=True)")


def _check_weights(model: nn.Module, epoch: int) -> None:
    # The loss of the last step came before its update, and a checkpoint must not keep a broken network.
    for name, parameter in trainable(model).items():
        if not parameter.isfinite().all():
            raise RunError(f"fit, epoch {epoch}: the parameter {name} became NaN or infinite; {_REPAIR}")


def _refuse_loss(model: nn.Module, inputs: Inputs, guide: Tensor | None, where: str, value: float) -> NoReturn:
    if unsound_input(inputs) is not None:
        raise InputError(f"{where}: the inputs hold NaN or infinity; check the data and its normalization")
    if guide is not None and not guide.isfinite().all():
        raise RunError(f"{where}: the teacher answers NaN or infinity, so the loss is {value}; check its weights")
    parameters = model.named_parameters()
    broken = [name for name, parameter in parameters if not distributed.local(parameter).isfinite().all()]
    found = f"the parameter {broken[0]} is NaN or infinite" if broken else "inputs and parameters are finite"
    raise RunError(f"{where}: the loss is {value} ({found}); {_REPAIR}")
