"""``polarspike run``: classify pictures with an exported file. Needs no torch, and imports none."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from polarspike import integer
from polarspike.cli.command import Command, show, tell
from polarspike.common import seals
from polarspike.common.checks import is_share
from polarspike.common.files import replacing
from polarspike.decoding import SUFFIXES, decoded, pictures_in
from polarspike.errors import DataError, ExportError, SpecError
from polarspike.integer.network import DESCRIPTION, DESCRIPTION_FORMAT
from polarspike.integer.storage import is_integer_network
from polarspike.sessions import open_session

Array = NDArray[Any]


@dataclass(frozen=True)
class Reader:
    """An exported file, ready to run.

    Args:
        answer: class scores (batch, classes) of float32 images (batch, C, H, W).
        shape: of an image, (C, H, W).
        classes: their names; none where the network does not say.
        mean: of a full-scale pixel, (C, 1, 1); std: the deviation.
        std: see ``mean``.
        crop: share of the scaled picture's shorter side that the cut in the middle keeps.
    """

    answer: Callable[[Array], Array]
    shape: tuple[int, int, int]
    classes: list[str]
    mean: Array
    std: Array
    crop: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Run(Command):
    """Say what is on pictures, with an exported file; torch is not needed.

    One line for each picture: its path, the class, and the class's score. Pictures are turned as their camera says; those
    of another size are scaled so that the shorter side fits, and cut in the middle. Transparency is dropped. What cannot be
    read is left out and said, and the exit code is 1.

    Args:
        file: an ONNX model, or an integer network.
        images: a folder of pictures (.png, .jpg), searched with all folders in it but hidden ones, or one picture.
        output: also write the lines as CSV to this file.
        batch: how many pictures at a time.
        threads: of ONNX Runtime, at most one for each core; all cores if 0. An integer network runs in NumPy, whose threads
            the environment sets (OMP_NUM_THREADS, OPENBLAS_NUM_THREADS).
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.onnx")]
    images: Path
    output: Path | None = None
    batch: int = 16
    threads: int = 0

    def execute(self) -> int:
        if self.batch < 1 or self.threads < 0:
            raise SpecError(f"--batch {self.batch} --threads {self.threads}: expected at least 1 and at least 0")
        paths = _pictures(self.images)
        if self.output is not None:
            _require_place(self.output, [self.file, *paths])
            _require_no_weights(self.output, self.file)
        reader = open_file(self.file, self.threads)
        classes = reader.classes
        lines: list[tuple[str, str, str]] = []
        for path, scores in self._scored(reader, paths):
            best = int(scores.argmax())
            name = classes[best] if best < len(classes) else str(best)
            lines.append((_printable(str(path)), _printable(name), f"{float(scores[best]):.4f}"))
            show("\t".join(lines[-1]))
        if self.output is not None:
            _write(self.output, lines)
        if len(lines) < len(paths):
            tell(f"{len(paths) - len(lines)} of {len(paths)} pictures could not be read")
        return int(len(lines) < len(paths))

    def _scored(self, reader: Reader, paths: list[Path]) -> Iterator[tuple[Path, Array]]:
        from tqdm import tqdm

        with tqdm(total=len(paths), desc="run", unit="picture", leave=False, disable=None) as bar:
            for start in range(0, len(paths), self.batch):
                part = paths[start : start + self.batch]
                seen = {
                    path: image for path in part if (image := _seen(path, reader, alone=len(paths) == 1)) is not None
                }
                bar.update(len(part))
                if not seen:
                    continue
                scores = reader.answer(np.stack(list(seen.values())))
                if scores.ndim != 2:
                    raise ExportError(f"{self.file}: expected class scores (batch, classes), got {scores.shape}")
                yield from zip(seen, scores, strict=True)


def open_file(path: Path, threads: int = 0) -> Reader:
    """Open a file by what is in it.

    Raises:
        DataError: there is no such file.
        ExportError: it is neither an ONNX model nor an integer network, is damaged, or was not written by polarspike.
        CheckpointError: a damaged integer network; damage is noticed by its digest, before anything is computed.
        MissingExtraError: ONNX Runtime is not installed.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; `polarspike export` writes one")
    if is_integer_network(path):
        network = integer.load(path)
        if len(network.inputs) != 1 or len(network.outputs) != 1:
            raise ExportError(f"{path}: expected one input and one output; run it from Python (polarspike.integer)")
        name, shape = network.inputs[0]
        outputs = network.outputs[0][1]
        return _reader(path, lambda x: integer.run(network, {name: x})[0], shape, outputs, network.description)
    sealed = seals.require_whole(path)
    try:
        session = open_session(path, threads)
    except ExportError as error:
        reason = str(error).partition("\n")[0]
        if path.suffix == ".safetensors":
            raise ExportError(
                f"{path}: expected an ONNX model or an integer network, got another safetensors file; a network that was "
                f"converted is exported first: polarspike export {path} --to onnx"
            ) from error
        raise ExportError(
            f"{path}: expected an ONNX model or an integer network, cannot be opened: {reason}; export it again"
        ) from error
    given = session.get_inputs()
    metadata = session.get_modelmeta().custom_metadata_map
    seals.require_last(path, sealed, metadata)
    if DESCRIPTION not in metadata:
        raise ExportError(
            f"{path}: an ONNX model that polarspike did not write; it does not say how pictures are scaled"
        )
    if len(given) != 1 or len(session.get_outputs()) != 1 or given[0].type != "tensor(float)":
        raise ExportError(
            f"{path}: expected one output, and one input of float32, got {', '.join(f'{x.name} {x.type}' for x in given)}"
        )
    name, sizes = given[0].name, given[0].shape[1:]

    def answer(x: Array) -> Array:
        try:
            scores: Array = session.run(None, {name: x})[0]
        except Exception as error:  # its errors have no common base
            reason = str(error).strip().partition("\n")[0]
            raise ExportError(f"{path}: fails on pictures {x.shape}: {reason}; export it again") from error
        return scores

    return _reader(path, answer, sizes, session.get_outputs()[0].shape[1:], metadata[DESCRIPTION])


def _reader(path: Path, answer: Callable[[Array], Array], sizes: Any, outputs: Any, description: str) -> Reader:
    try:
        told = json.loads(description)
        version, notes = told["format"], told["notes"]
        if version != DESCRIPTION_FORMAT:
            raise ExportError(
                f"{path}: expected a description of format {DESCRIPTION_FORMAT}, got {version!r}; "
                "use the version that wrote it"
            )
        classes = notes.get("classes", [])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ExportError(f"{path}: its description is damaged ({error!r}); export it again") from error
    if not isinstance(classes, list):
        raise ExportError(f"{path}: notes['classes']: expected a list of names, got {classes!r}")
    if classes and len(outputs) == 1 and isinstance(outputs[0], int) and outputs[0] != len(classes):
        raise ExportError(
            f"{path}: notes['classes']: expected {outputs[0]} names, one for each output, got {len(classes)}; export it "
            "again with snn.notes['classes'] of that length"
        )
    if len(sizes) != 3 or not all(isinstance(size, int) for size in sizes):
        raise ExportError(
            f"{path}: expected a network of pictures (channels, height, width), got an input {tuple(sizes)}"
        )
    channels = sizes[0]
    if channels not in (1, 3):
        raise ExportError(f"{path}: expected pictures of 1 or 3 channels, the network takes {channels}")
    try:
        mean, std = (np.asarray(notes["normalization"][key], dtype=np.float32) for key in ("mean", "std"))
    except (KeyError, TypeError, ValueError):
        mean = std = np.zeros(0, dtype=np.float32)
    finite = np.isfinite(mean).all() and np.isfinite(std).all()
    if mean.shape != (channels,) or std.shape != (channels,) or not finite or not (std > 0).all():
        raise ExportError(
            f"{path}: its notes do not say how pictures are scaled; set snn.notes['normalization'] = "
            "{'mean': [...], 'std': [...]} (in units of a full-scale pixel) before polarspike.export"
        )
    crop = notes.get("crop", 1.0)
    if not is_share(crop):
        raise ExportError(f"{path}: notes['crop']: expected a number above 0 and at most 1, got {crop!r}")
    shape = (channels, sizes[1], sizes[2])
    return Reader(
        answer, shape, [str(name) for name in classes], mean.reshape(-1, 1, 1), std.reshape(-1, 1, 1), float(crop)
    )


def picture(path: Path, reader: Reader) -> Array:
    """One picture as the network takes it, float32 (C, H, W).

    Raises:
        DataError: it cannot be read.
        MissingExtraError: Pillow is not installed.
    """
    channels, height, width = reader.shape
    image = decoded(path, channels, str(path), upright=True)
    if image.size != (width, height):
        from PIL import Image  # which has decoded the picture

        factor = max(width / image.width, height / image.height) / reader.crop
        scaled = (max(width, round(image.width * factor)), max(height, round(image.height * factor)))
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        try:
            image = image.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
        except (MemoryError, ValueError) as error:  # of a line of pixels
            raise DataError(
                f"{path}: expected a picture, got {image.width} x {image.height} pixels: {error}"
            ) from error
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels).transpose(2, 0, 1)
    return (pixels / np.float32(255) - reader.mean) / reader.std


def _seen(path: Path, reader: Reader, *, alone: bool) -> Array | None:
    """One of many pictures; None, and a line about it, where it cannot be read: the others are not lost with it."""
    try:
        return picture(path, reader)
    except DataError as error:
        if alone:
            raise
        tell(f"left out: {error}")
        return None


def _pictures(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"--images {place}: there is no such folder, and no such picture")
    found = pictures_in(place)
    if not found:
        raise DataError(f"--images {place}: expected pictures ({', '.join(SUFFIXES)}), found none")
    return found


def _require_place(output: Path, read: Iterable[Path]) -> None:
    """Refuse a table that could not be written, or would take the place of what is read, before any work."""
    if not output.parent.is_dir():
        raise SpecError(f"--output {output}: there is no folder {str(output.parent)!r}")
    if output.is_dir():
        raise SpecError(f"--output {output}: expected a file, this is a folder; give the file's name, too")
    if output.exists() and any(path.exists() and output.samefile(path) for path in read):
        raise SpecError(f"--output {output}: this file is read by this very command; give another name")


def _require_no_weights(output: Path, model: Path) -> None:
    """Refuse a table in the place of a file in which an ONNX model keeps its weights; they lie in its folder or below."""
    folder = model.resolve().parent
    place = output.resolve()
    if not (output.is_file() and model.is_file() and place.is_relative_to(folder)):
        return
    location = place.relative_to(folder).as_posix().encode()
    # As protobuf writes an entry of external_data: key and value are texts behind a tag and their length.
    length = bytes([len(location)] if len(location) < 128 else [len(location) % 128 + 128, len(location) // 128])
    if b"\x0a\x08location\x12" + length + location in model.read_bytes():
        raise SpecError(f"--output {output}: {model} keeps its weights in this file; give another name")


def _printable(text: str) -> str:
    """A text on one line of a table: what would break it, or is no text at all, as in a string of Python."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _write(path: Path, lines: list[tuple[str, str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("picture", "class", "score"))
    writer.writerows(lines)
    try:
        with replacing(path) as partial:
            partial.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
    tell(f"wrote {path}")
