"""Event data sets from fixtures in their real layouts: parts, labels, frames, readings, and what wrong files are told."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import polarspike as ps
from polarspike import cli, data
from polarspike.data import events
from polarspike.data.events import FrameSpec, load_events, published, read_aedat, simulated
from polarspike.data.events.cache import FORMAT
from polarspike.data.events.streams import EventStream
from polarspike.data.registry import Source
from polarspike.errors import DataError

from .layouts import CLASSES, COUNTS, MAKERS, cifar10_dvs, dvs128_gesture, n_caltech101, n_mnist, packed_gestures
from .test_formats import aedat2_bytes, aedat31_bytes, bin_bytes

SPEC = FrameSpec(bins=2)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("POLARSPIKE_DATA", raising=False)
    monkeypatch.setattr(published, "CLASSES", CLASSES)
    monkeypatch.setattr(published, "COUNTS", COUNTS)


@pytest.mark.parametrize("name", MAKERS)
def test_real_layouts(name: str, tmp_path: Path) -> None:
    make, train, test, size, classes = MAKERS[name]
    found = load_events(name, make(tmp_path), SPEC)
    assert (len(found.train), len(found.test), len(found.classes)) == (train, test, classes)
    assert found.train.images.shape == (train, 4, *size) and not found.simulated
    again = load_events(name, tmp_path, SPEC)
    assert torch.equal(again.train.images, found.train.images)
    if name in ("n-mnist", "cifar10-dvs"):  # the first event stands in the column of the label, in the first bin
        columns = found.train.images[:, 1, 0].int().argmax(1)
        assert torch.equal(columns, found.train.labels)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    before = load_events("n-mnist", n_mnist(tmp_path), SPEC).test
    path = tmp_path / "Test" / "3" / "00000.bin"
    path.write_bytes(bin_bytes([(9, 9, 1, 1), (9, 9, 2, 1)]))
    after = load_events("n-mnist", tmp_path, SPEC).test
    changed = (before.images != after.images).flatten(1).any(1)
    assert after.labels[changed].tolist() == [3]


def test_gestures_as_tonic_packs_them(tmp_path: Path) -> None:
    found = load_events("dvs128-gesture", packed_gestures(tmp_path), SPEC)
    assert sorted(found.test.labels.tolist()) == [0, 10]
    (tmp_path / "ibmGestureTest" / "user01_lab" / "arm.npy").touch()
    with pytest.raises(DataError, match=r"arm\.npy: expected a name of 0 to 10, the label"):
        load_events("dvs128-gesture", tmp_path, SPEC)


def test_a_stretch_of_a_recording_is_a_sample(tmp_path: Path) -> None:
    # As its archive unpacks.
    (tmp_path / "DvsGesture").mkdir()
    dvs128_gesture(tmp_path / "DvsGesture")
    found = load_events("dvs128-gesture", tmp_path, FrameSpec(bins=1)).train
    by_label = {int(label): image for label, image in zip(found.labels, found.images, strict=True)}
    assert int(by_label[0].sum()) == 2 and int(by_label[10].sum()) == 1 and int(by_label[10][1, 3, 3]) == 1


def test_a_file_of_many_samples_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part, users in (("train", ("user01_led", "user02_led", "user03_led")), ("test", ("user24_lab",))):
        (tmp_path / f"trials_to_{part}.txt").write_text("".join(f"{user}.aedat\n" for user in users))
        for user in users:
            (tmp_path / f"{user}.aedat").write_bytes(aedat31_bytes([(1, 1, 10 * k, 1) for k in range(1, 12)]))
            rows = "".join(f"{k},{10 * k},{10 * k + 5}\n" for k in range(1, 12))
            (tmp_path / f"{user}_labels.csv").write_text("class,startTime_usec,endTime_usec\n" + rows)
    monkeypatch.setattr(published, "COUNTS", {**COUNTS, "dvs128-gesture": (33, 11)})
    read: list[str] = []

    def spy(path: Path, size: tuple[int, int]) -> EventStream:
        read.append(path.name)
        return read_aedat(path, size)

    monkeypatch.setattr(published, "read_aedat", spy)
    found = load_events("dvs128-gesture", tmp_path, FrameSpec(bins=1))
    assert len(read) == len(set(read)) == 4
    assert sorted(found.train.labels.tolist()) == sorted([*range(11)] * 3)
    assert found.train.labels.tolist() != sorted(found.train.labels.tolist())  # still in a fair order


#: What readers and frames make of the small data sets, for this FORMAT of caches.
MADE = {
    "n-mnist": "a62044b531ca5000",
    "n-caltech101": "c102b73891c5763e",
    "cifar10-dvs": "1cd1232e9afbab88",
    "dvs128-gesture": "6d0865b4da3996d5",
}


@pytest.mark.parametrize("name", MAKERS)
def test_other_frames_need_another_format_of_caches(name: str, tmp_path: Path) -> None:
    found = load_events(name, MAKERS[name][0](tmp_path), SPEC)
    digest = hashlib.sha256()
    for part in (found.train, found.test):
        digest.update(part.images.numpy().tobytes() + part.labels.numpy().tobytes())
    assert FORMAT == 1 and MADE[name] == digest.hexdigest()[:16], (
        "readers or frames give something else than before: raise FORMAT in polarspike/data/events/cache.py, so that no "
        "cache of before is taken for it, and write the new digests here"
    )


def test_the_readings_of_a_sequence(tmp_path: Path) -> None:
    found = load_events("cifar10-dvs", cifar10_dvs(tmp_path), SPEC)
    images = found.channels()
    assert images.in_channels == 4 and images.normalization.mean[:2] == images.normalization.mean[2:]
    frames, labels = next(iter(found.sequences("train", 8)))
    assert frames.shape == (8, 2, 2, 128, 128) and len(found.sequences("train", 8)) == 23
    merged, same = next(iter(data.batches(images.train, 8, normalization=images.normalization)))
    assert torch.equal(frames.flatten(1, 2), merged) and torch.equal(labels, same)
    torch.manual_seed(0)
    moved, _ = next(iter(found.sequences("train", 8, shuffle=True, augmented=True)))
    assert moved.shape == frames.shape
    assert data.load("cifar10-dvs", tmp_path).in_channels == 20  # ten bins of two signs, for `polarspike train`


def test_a_network_learns_from_frames_at_one_timestep_and_at_several(tmp_path: Path) -> None:
    found = load_events("n-mnist", n_mnist(tmp_path), FrameSpec(bins=3))
    frames, _ = next(iter(found.sequences("train", 30)))
    net = ps.models.create("cnn", num_classes=10, in_channels=2, width=4).eval()
    qann = ps.quantize(net, ps.QuantSpec(), example=frames[:, 0])
    ps.calibrate(qann, [frames.mean(1)])
    snn = ps.convert(qann)
    with torch.no_grad():
        state = None
        for t in range(3):
            streamed, state = snn.step(frames[:, t], state)
        assert torch.allclose(streamed, snn(frames, time_dim=1), atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_missing_files_are_named_with_the_way_to_get_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=rf"{name}: expected .* in one of: .*npack .* of https://.*POLARSPIKE_DATA/{name}"
    ):
        load_events(name, tmp_path)
    with pytest.raises(DataError, match="expected root to be a folder"):
        load_events(name, tmp_path / "nowhere")


def test_unfinished_and_damaged_data_sets(tmp_path: Path) -> None:
    (n_mnist(tmp_path / "a") / "Train" / "7" / "00001.bin").unlink()
    with pytest.raises(DataError, match=r"expected 30 recordings in .*, got 29; the archive is not wholly unpacked"):
        load_events("n-mnist", tmp_path / "a", SPEC)
    (n_mnist(tmp_path / "b") / "Train" / "7" / "00001.bin").write_bytes(b"abc")
    with pytest.raises(DataError, match=r"00001\.bin: expected 5 bytes for each event"):
        load_events("n-mnist", tmp_path / "b", SPEC)
    (packed_gestures(tmp_path / "d") / "ibmGestureTrain" / "user01_lab" / "10.npy").unlink()
    with pytest.raises(DataError, match=r"dvs128-gesture, packed: expected 2 recordings in .*, got 1; .* not wholly"):
        load_events("dvs128-gesture", tmp_path / "d", SPEC)
    gestures = dvs128_gesture(tmp_path / "c" if (tmp_path / "c").mkdir() is None else tmp_path)
    (gestures / "user01_led_labels.csv").write_text("class,startTime_usec,endTime_usec\n1,100,201\n")  # cut short
    with pytest.raises(DataError, match=r"dvs128-gesture: expected 2 recordings in .*, got 1; .* not wholly"):
        load_events("dvs128-gesture", gestures, SPEC)
    (gestures / "user01_led_labels.csv").write_text("class,startTime_usec,endTime_usec\n12,1,2\n")
    with pytest.raises(DataError, match=r"expected classes in 1\.\.11, got 12"):
        load_events("dvs128-gesture", gestures, SPEC)
    (gestures / "user01_led_labels.csv").write_text("class,startTime_usec,endTime_usec\n1,x,2\n")
    with pytest.raises(DataError, match="expected lines of class, start, end, got '1,x,2'"):
        load_events("dvs128-gesture", gestures, SPEC)
    (gestures / "user01_led.aedat").unlink()
    with pytest.raises(DataError, match=r"which trials_to_train\.txt names"):
        load_events("dvs128-gesture", gestures, SPEC)


def test_unknown_names() -> None:
    with pytest.raises(DataError, match=r"unknown event data set 'nmnist'.*did you mean 'n-mnist'"):
        load_events("nmnist")


class Few:
    """A stand-in for Fashion-MNIST with a dozen of its images' shape."""

    classes = tuple("abcdefghij")

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (12, 1, 28, 28), dtype=torch.uint8, generator=generator)
        self.train = data.Split(images, torch.arange(12) % 10)
        self.test = data.Split(images[:4], torch.arange(4))


def test_simulated_sets_say_so_and_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "_images", lambda root: Few())
    found = load_events("events-fashion-mnist", None, SPEC)
    assert found.simulated and "simulated" in found.origin and len(found.train) == 12
    assert found.train.labels.tolist() == Few().train.labels.tolist()
    # The same image in the other part is another sample: it has a seed of its own.
    assert not torch.equal(found.train.images[0], found.test.images[0])


def test_simulated_sets_are_of_the_images_that_are_there_now(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Source] = []
    few = Few()
    monkeypatch.setattr(simulated, "fashion_mnist", lambda source: asked.append(source) or few)  # type: ignore[func-returns-value]
    first = data.load("events-fashion-mnist", frames=SPEC)
    few.train = data.Split(255 - few.train.images, few.train.labels)
    again = data.load("events-fashion-mnist", frames=SPEC, download=True)
    assert asked == [Source(), Source(download=True)]
    assert not torch.equal(first.train.images, again.train.images)  # type: ignore[union-attr]


def test_simulated_frames_belong_to_their_images_and_to_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[int] = []
    simulate = simulated.simulate
    monkeypatch.setattr(simulated, "simulate", lambda *a, **k: made.append(1) or simulate(*a, **k))  # type: ignore[func-returns-value]
    few = Few()
    monkeypatch.setattr(simulated, "_images", lambda root: few)
    first = load_events("events-fashion-mnist", None, SPEC, cache_folder=tmp_path / "cache")
    assert len(made) == 16
    monkeypatch.chdir(tmp_path)
    load_events("events-fashion-mnist", None, SPEC, cache_folder=tmp_path / "cache")
    assert len(made) == 16
    few.train = data.Split(255 - few.train.images, few.train.labels)
    other = load_events("events-fashion-mnist", None, SPEC, cache_folder=tmp_path / "cache")
    assert len(made) > 16 and not torch.equal(other.train.images, first.train.images)


def test_the_order_of_saccades_is_in_nothing_but_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "_images", lambda root: Few())
    spec = FrameSpec(bins=3)
    plain, mixed = (load_events(name, None, spec).train for name in ("events-fashion-mnist", "saccade-order"))
    assert mixed.labels.tolist() == [0, 1] * 6 and events.find_source("saccade-order").simulated
    assert load_events("saccade-order", None, spec).classes == ("in order", "reversed")
    assert torch.equal(mixed.images[::2], plain.images[::2])
    one, other = (part.images[1::2].view(6, 3, 2, 34, 34).long() for part in (plain, mixed))
    assert torch.equal(one.sum(1), other.sum(1))  # the mean frame is the same
    # The bins begin at the first event, so that a saccade is not quite a bin.
    moved = (one.flip(1) - other).abs().sum() / one.sum()
    assert moved < 0.05 < (one - other).abs().sum() / one.sum()


def test_a_reversed_order_turned_again_is_the_order() -> None:
    stream = EventStream.of([0, 1, 2, 3], [0, 0, 0, 0], [5, 99, 150, 290], [0, 1, 0, 1], (1, 4))
    turned = simulated.reordered(stream, 100)
    assert turned.t.tolist() == [90, 150, 205, 299] and turned.x.tolist() == [3, 2, 0, 1]
    assert simulated.reordered(turned, 100).t.tolist() == stream.t.tolist()


@pytest.mark.parametrize("content", [b"", bin_bytes([(0, 240, 0, 0)])], ids=["nothing", "overflows"])
def test_a_sample_of_no_event_is_refused(tmp_path: Path, content: bytes) -> None:
    (n_mnist(tmp_path) / "Test" / "4" / "00000.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"4/00000\.bin: expected events of class 4, found none; .* unpack the archive"):
        load_events("n-mnist", tmp_path, SPEC)
    assert len(EventStream.of([], [], [], [], (4, 4))) == 0  # which says nothing of streams


@pytest.mark.parametrize("content", [aedat2_bytes([]), aedat31_bytes([])], ids=["2.0", "3.1"])
def test_a_recording_of_no_event_is_refused(tmp_path: Path, content: bytes) -> None:
    (cifar10_dvs(tmp_path) / "cat" / "cifar10_cat_3.aedat").write_bytes(content)
    with pytest.raises(DataError, match=r"cifar10_cat_3\.aedat: expected events of class 3, found none"):
        load_events("cifar10-dvs", tmp_path, SPEC)


def test_an_array_of_no_event_is_refused(tmp_path: Path) -> None:
    np.save(packed_gestures(tmp_path) / "ibmGestureTest" / "user01_lab" / "10.npy", np.zeros((0, 4)))
    with pytest.raises(DataError, match=r"10\.npy: expected events of class 10, found none"):
        load_events("dvs128-gesture", tmp_path, SPEC)


def test_a_gesture_after_the_last_event_is_refused(tmp_path: Path) -> None:
    path = dvs128_gesture(tmp_path) / "user01_led.aedat"
    path.write_bytes(aedat31_bytes([(1, 1, 100, 1), (2, 2, 200, 0)]))
    with pytest.raises(
        DataError, match=r"user01_led\.aedat: expected events of class 10 from 300 to 400 us, found none"
    ):
        load_events("dvs128-gesture", tmp_path, SPEC)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "user01_led_labels.csv",
            "class,startTime_usec,endTime_usec\n1,201,100\n",
            "a start before the end, got '1,201,",
        ),
        ("user01_led_labels.csv", "1,100,201\n11,300,400\n", "expected the line class,.* got '1,100,201' and 1 more"),
        ("user01_led_labels.csv", "", "expected the line class,.* got '' and 0 more"),
        ("user01_led_labels.csv", "class,startTime_usec,endTime_usec\n", "and 0 more; unpack the archive again"),
        ("trials_to_train.txt", "\n", "expected the names of recordings, found none"),
        (
            "trials_to_train.txt",
            "user01_led.aedat\n" * 2,
            r"expected every recording once, got user01_led\.aedat twice",
        ),
        ("trials_to_test.txt", "user01_led.aedat\n", "in the list of one part, got it in both"),
    ],
)
def test_lists_of_gestures_that_contradict_themselves(tmp_path: Path, file: str, text: str, message: str) -> None:
    (dvs128_gesture(tmp_path) / file).write_text(text)
    with pytest.raises(DataError, match=message):
        load_events("dvs128-gesture", tmp_path, SPEC)


def test_a_replaced_recording_is_read_again(tmp_path: Path) -> None:
    load_events("dvs128-gesture", dvs128_gesture(tmp_path), SPEC)
    (tmp_path / "user01_led.aedat").write_bytes(aedat31_bytes([(9, 9, 100, 1), (9, 9, 101, 1), (3, 3, 300, 1)]))
    again = load_events("dvs128-gesture", tmp_path, FrameSpec(bins=1)).train
    first = again.images[again.labels == 0]
    assert int(first.sum()) == int(first[0, 1, 9, 9]) == 2


def test_every_class_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (n_mnist(tmp_path / "a") / "Train" / "7").glob("*.bin"):
        path.rename(tmp_path / "a" / "Train" / "8" / f"7{path.name}")  # the counts add up
    with pytest.raises(DataError, match=r"Train/7: expected recordings of this class \(\*\.bin\), found none"):
        load_events("n-mnist", tmp_path / "a", SPEC)
    for stray in ("__MACOSX", ".cache"):
        (n_caltech101(tmp_path / stray) / "Caltech101" / stray).mkdir()
        assert load_events("n-caltech101", tmp_path / stray, SPEC).classes == ("BACKGROUND_Google", "Faces_easy")
    monkeypatch.setattr(published, "CLASSES", {"n-caltech101": 101})
    with pytest.raises(DataError, match=r"expected folders of 101 classes in .*, got 2"):
        load_events("n-caltech101", tmp_path / ".cache", SPEC)


def test_two_roots_share_no_frames(tmp_path: Path) -> None:
    roots = [n_mnist(tmp_path / name) for name in "ab"]
    changed = roots[1] / "Test" / "3" / "00000.bin"
    changed.write_bytes(bin_bytes([(9, 9, 10, 1), (9, 9, 20, 0), (9, 9, 30, 1)]))  # of the same size
    for path in tmp_path.rglob("*.bin"):
        os.utime(path, (0, 0))
    one, other = (load_events("n-mnist", root, SPEC).test.images for root in roots)
    assert not torch.equal(one, other)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    path = n_mnist(tmp_path) / "Train" / "3" / "00000.bin"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"3/00000\.bin: expected a readable file"):
        load_events("n-mnist", tmp_path, SPEC)


def test_parts_by_name(tmp_path: Path) -> None:
    found = load_events("n-mnist", n_mnist(tmp_path), SPEC)
    with pytest.raises(
        DataError, match="n-mnist: expected a part among train, test, got 'validation'; split_validation"
    ):
        found.sequences("validation", 5)
    cut = found.split_validation(0.3)
    assert {name: len(split) for name, split in cut.parts().items()} == {"train": 20, "validation": 10, "test": 10}
    assert cut.normalization == found.normalization and len(found.train) == 30
    frames, labels = next(iter(cut.sequences("validation", 10)))
    assert frames.shape == (10, 2, 2, 34, 34) and sorted(labels.tolist()) == list(range(10))
    assert cut.channels().count("validation") == 10
    with pytest.raises(DataError, match="was already cut"):
        cut.split_validation(0.3)


def test_a_recipe_says_how_frames_are_made_and_its_file_remembers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n_mnist(tmp_path / "n-mnist")
    run = tmp_path / "run"
    flags = "--data n-mnist --model mlp --width 8 --batch-size 10 --ann.epochs 1 --qann.epochs 1 --timesteps 1"
    frames = "--frames.bins 3 --frames.by count --frames.height 17 --calibration-images 10 --proof-images 10"
    given = ["--root", str(tmp_path / "n-mnist"), "--run", str(run)]
    assert cli.main(["train", *flags.split(), *frames.split(), *given]) in (0, 1)  # ten samples prove little
    network = ps.load(run / "snn.safetensors")
    assert FrameSpec.from_dict(network.notes["frames"]) == FrameSpec(3, "count", height=17)  # type: ignore[union-attr]
    capsys.readouterr()
    assert cli.main(["evaluate", str(run / "snn.safetensors"), "--timesteps", "1", *given[:2]]) == 0
    right = ps.evaluate(network, load_events("n-mnist", tmp_path / "n-mnist", FrameSpec(3, "count", height=17))  # type: ignore[arg-type]
                        .channels().evaluation(10)).correct[1]  # fmt: skip
    assert f"{right}/10" in capsys.readouterr().out


def test_sequences_are_mixed_too(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    found = load_events("n-mnist", n_mnist(tmp_path), SPEC)
    mixed = dataclasses.replace(found, augmentation=data.Augmentation(mixup=1.0))
    frames, shares = next(iter(mixed.sequences("train", 10, shuffle=True, augmented=True)))
    assert frames.shape == (10, 2, 2, 34, 34) and shares.shape == (10, 10)
