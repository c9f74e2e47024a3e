"""Named configurations. Each is a function that returns a full RunConfig; `_` in its name is `-` on the command line.

Those of the reference are from Gu, Lyu, Huang, Arora, "Why (and When) does Local SGD Generalize Better than SGD?",
ICLR 2023; --resume-pth and --data-pth give their start weights and data.
"""

from __future__ import annotations

from collections.abc import Callable

from .federated_recipes import (
    diloco_char,
    each_phase,
    fedadam_cifar10,
    fedavg_fashion_mnist,
    fedprox_synthetic,
    mcmahan_2nn,
    niid_bench_fashion_mnist,
    pfl_cifar10,
)
from .schema import RunConfig
from .training_settings import Schedule

NEVER = 5_000_000


def default(schedule: Schedule = "rounds") -> RunConfig:
    """Return the defaults of the reference's program for `schedule`."""
    if schedule == "rounds":
        return RunConfig()
    return RunConfig().with_values(
        schedule="epochs",
        model="torchvision.resnet50",
        group_weight=True,
        batch_size=128,
        total_batch_size=16384,
        start_lr=None,
        lr=0.01,
        epochs=1,
        decay1=150,
        decay2=225,
        decay3=225,
        **each_phase(save_freq=50),
        nw=12,
    )


def quickstart() -> RunConfig:
    """32 clients of a small perceptron on the digits that ship with the package: seconds on a laptop."""
    return RunConfig(name="quickstart").with_values(
        dataset="digits",
        model="mlp",
        batch_size=8,
        total_batch_size=256,
        client_lr=0.2,
        start_lr=None,
        epochs=60,
        **each_phase(step=5),
        eval_freq1=6,
        momentum=0.9,
        decay1=NEVER,
        decay2=NEVER,
    )


def _cifar10(name: str) -> RunConfig:
    return RunConfig(name=name).with_values(
        dataset="cifar10",
        batch_size=128,
        total_batch_size=4096,
        steps_per_epoch=12,
        momentum=0.0,
        wd=5e-4,
        group_weight=True,
        decay1=NEVER,
        decay2=NEVER,
        eval_on_start=True,
    )


def cifar10_post_local() -> RunConfig:
    """Figure 1a: ResNet-56 from epoch 250, 32 clients x 128, rate 0.32 constant, H=600."""
    return _cifar10("cifar10-post-local").with_values(
        model="resnet56",
        start_lr=0.01,
        resume=250,
        epochs=250,
        **each_phase(step=600, save_freq=6000),
        bn_batches=100,
        aug=True,
    )


def cifar10_diffusion() -> RunConfig:
    """Figure 3a: as cifar10-post-local, from diffusion_common.pt."""
    return cifar10_post_local().with_name("cifar10-diffusion")


def cifar10_resnet_label_noise() -> RunConfig:
    """Figure 7: ResNet-56 with GroupNorm under label noise, H=384, rate 0.1 after one epoch of warm-up."""
    return _label_noise("cifar10-resnet-label-noise").with_values(
        model="resnet56_gn", n_groups=8, start_lr=0.1, max_lr=0.1, wd=5e-4, epochs=500_000
    )


def cifar10_vgg_label_noise() -> RunConfig:
    """Figure 7: VGG-16 without normalisation under label noise, H=384, rate 0.1 after one epoch of warm-up."""
    return _label_noise("cifar10-vgg-label-noise").with_values(
        model="vgg16", start_lr=0.1, max_lr=0.1, wd=0.0, epochs=50_000, group_weight=False
    )


def _label_noise(name: str) -> RunConfig:
    return _cifar10(name).with_values(
        resume=500,
        warm_up=True,
        warmup_epochs=1,
        **each_phase(step=384, save_freq=1000),
        replacement=True,
        aug=False,
        label_noise=True,
        noise_p=0.1,
    )


def imagenet_post_local() -> RunConfig:
    """ResNet-50 from epoch 100 to 150: 256 clients x 32, rate 0.005 per 256 samples, H=26."""
    return (
        default("epochs")
        .with_name("imagenet-post-local")
        .with_values(
            dataset="beton",
            image_size=224,
            batch_size=32,
            total_batch_size=8192,
            steps_per_epoch=156,
            lr=0.005,
            momentum=0.0,
            wd=1e-4,
            resume=100,
            epochs=50,
            decay1=NEVER,
            decay2=NEVER,
            decay3=NEVER,
            **each_phase(step=26, eval_freq=6),
        )
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {
    recipe.__name__.replace("_", "-"): recipe
    for recipe in (
        quickstart,
        fedavg_fashion_mnist,
        fedadam_cifar10,
        diloco_char,
        niid_bench_fashion_mnist,
        mcmahan_2nn,
        pfl_cifar10,
        fedprox_synthetic,
        cifar10_post_local,
        cifar10_diffusion,
        cifar10_resnet_label_noise,
        cifar10_vgg_label_noise,
        imagenet_post_local,
    )
}
