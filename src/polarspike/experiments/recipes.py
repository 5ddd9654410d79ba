"""The published experiments as plain values; the files in recipes/ say what each costs and what to expect of it.

Start and rate of the steps of ``DEMO`` are those with which its figures were taken, not the present defaults. Experiments
that need a GPU or hours are recipes with nothing to expect yet: each runs end to end on random images (``polarspike train
NAME --rehearse``), and none has been run on its data.
"""

import dataclasses
from typing import Any

from polarspike.data import Augmentation
from polarspike.data.events import FrameSpec
from polarspike.experiments.recipe import Recipe
from polarspike.specs import QuantSpec
from polarspike.training_spec import Precision, TrainSpec

# Command, cost and expected result: recipes/demo.py
DEMO = Recipe(
    data="mnist-5k",
    model="cnn",
    batch_size=64,
    ann=TrainSpec(epochs=5, learning_rate=0.1),
    quant=QuantSpec(negative=0, positive=15, init="entropy"),
    qann=TrainSpec(epochs=10, learning_rate=0.1, warmup_epochs=0.5, step_rate=0.0),
)

# Command, cost and expected result: recipes/fashion_mnist.py
FASHION_MNIST = Recipe(
    data="fashion-mnist",
    model="resnet9",
    width=20,
    ann=TrainSpec(epochs=24, learning_rate=0.2, label_smoothing=0.1),
    quant=QuantSpec(negative=0, positive=15),
    qann=TrainSpec(epochs=3, learning_rate=0.01, label_smoothing=0.1),
)

#: The recipe that ``polarspike train`` starts from, by dataset; for any other dataset it is ``Recipe()``.
PUBLISHED = {recipe.data: recipe for recipe in (DEMO, FASHION_MNIST)}


def _convolutional(
    data: str,
    model: str,
    *,
    epochs: int = 200,
    fine: int = 50,
    batch: int = 128,
    customary: int = 128,
    decay: float = 5e-4,
    precision: Precision = "fp32",
    **rest: Any,
) -> Recipe:
    """SGD at rate .1 for batches of the ``customary`` size, and in proportion for others; eight levels, and a teacher.

    The float network is the teacher. Rates in proportion to the batch: Goyal et al. 2017, arXiv 1706.02677.
    """
    rate, both = batch / customary, TrainSpec(weight_decay=decay, precision=precision)
    return Recipe(
        data=data,
        model=model,
        batch_size=batch,
        ann=dataclasses.replace(both, epochs=epochs, learning_rate=0.1 * rate, warmup_epochs=5.0),
        quant=QuantSpec(negative=0, positive=7),
        qann=dataclasses.replace(both, epochs=fine, learning_rate=0.02 * rate, distillation=0.5, temperature=4.0),
        **rest,
    )


def _through_time(data: str, *, fine: int, batch: int = 128, **rest: Any) -> Recipe:
    """An event CNN whose frames are first timesteps, and which then learns their order for as many epochs again.

    Without a teacher: a float network that sees frame by frame knows no order.
    """
    further = TrainSpec(epochs=fine, learning_rate=0.02 * batch / 128)
    return _convolutional(
        data, "event_cnn", fine=fine, batch=batch, reading="through-time", through_time=further, **rest
    )


def _transformer(
    data: str, *, width: int, heads: int, patch: int, batch: int, epochs: int, fine: int, workers: int = 0
) -> Recipe:
    """AdamW in bfloat16; sites that are signed by nature get levels (7, 8), attention probabilities (0, 8).

    Trained for several timesteps, without which Transformers lose by more of them (docs/results.md).

    Changes of images, smoothing and the float network's rate in proportion to the batch are after DeiT (Touvron et al.
    2021, arXiv 2012.12877): the same kinds and strengths (its RandAugment of magnitude 9 of 10 is 27 on torchvision's
    scale); erased parts are black, and repetitions, color jitter and stochastic depth are left out.
    """
    rate, both = 5e-4 * batch / 512, TrainSpec(optimizer="adamw", weight_decay=0.05, precision="bf16")
    return Recipe(
        data=data,
        model="vit",
        width=width,
        options={"depth": 12, "heads": heads, "ratio": 4, "patch": patch},
        batch_size=batch,
        ann=dataclasses.replace(both, epochs=epochs, learning_rate=rate, warmup_epochs=10.0, label_smoothing=0.1),
        augmentation=Augmentation(randaugment=27, erasing=0.25, mixup=0.8, cutmix=1.0),
        quant=QuantSpec(negative=7, positive=8),
        qann=dataclasses.replace(
            both, epochs=fine, learning_rate=rate / 5, distillation=0.9, temperature=2.0, timesteps=(1, 2, 4, 8)
        ),
        workers=workers,
    )


#: All recipes by name: what ``polarspike train NAME`` takes. One file in recipes/ for each.
RECIPES: dict[str, Recipe] = {
    "demo": DEMO,
    "fashion_mnist": FASHION_MNIST,
    "photo_patches_cnn": _convolutional("photo-patches", "cnn", epochs=20, fine=10, batch=64),
    "cifar10_vgg16": _convolutional("cifar-10", "vgg16"),
    "cifar10_resnet18": _convolutional("cifar-10", "resnet18"),
    "cifar10_resnet20": _convolutional("cifar-10", "resnet20"),
    "cifar10_vit_ti": _transformer("cifar-10", width=192, heads=3, patch=4, batch=512, epochs=300, fine=60, workers=8),
    "cifar100_vgg16": _convolutional("cifar-100", "vgg16"),
    "cifar100_resnet20": _convolutional("cifar-100", "resnet20"),
    "tiny_imagenet_resnet18": _convolutional(
        "tiny-imagenet-200", "resnet18", epochs=100, fine=30, batch=256, customary=256, precision="bf16", workers=12
    ),
    "imagenet_resnet34": _convolutional(
        "imagenet-1k",
        "resnet34",
        epochs=90,
        fine=20,
        batch=256,
        customary=256,
        decay=1e-4,
        options={"stem": "imagenet"},
        precision="bf16",
        workers=24,
    ),
    "imagenet_vit_s": _transformer(
        "imagenet-1k", width=384, heads=6, patch=16, batch=1024, epochs=300, fine=30, workers=24
    ),
    "n_mnist_event_cnn": _convolutional("n-mnist", "event_cnn", epochs=30, fine=10, batch=64),
    "n_caltech101_event_cnn": _convolutional("n-caltech101", "event_cnn", epochs=100, fine=30, batch=32),
    "cifar10_dvs_event_cnn": _convolutional("cifar10-dvs", "event_cnn", epochs=100, fine=30, batch=32),
    "dvs128_gesture_event_cnn": _convolutional("dvs128-gesture", "event_cnn", epochs=150, fine=30, batch=16),
    "dvs128_gesture_event_cnn_frames": _convolutional(
        "dvs128-gesture", "event_cnn", epochs=150, fine=30, batch=16, reading="frames"
    ),
    "dvs128_gesture_event_cnn_through_time": _through_time("dvs128-gesture", epochs=150, fine=30, batch=16),
    "events_fashion_mnist_event_cnn": _convolutional("events-fashion-mnist", "event_cnn", epochs=15, fine=5, width=16),
    "events_fashion_mnist_event_cnn_frames": _convolutional(
        "events-fashion-mnist", "event_cnn", epochs=15, fine=5, width=16, reading="frames", frames=FrameSpec(bins=6)
    ),
    "events_fashion_mnist_event_cnn_through_time": _through_time(
        "events-fashion-mnist", epochs=15, fine=5, width=16, frames=FrameSpec(bins=6)
    ),
}
