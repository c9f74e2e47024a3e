"""Popular modules by name, with small inputs, drawn weights and no dropout."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES, WORDS, LENGTH = 10, 100, 12
MAX_PARAMETERS = 30_000_000

TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnext50_32x4d"),
    *("densenet121", "densenet169", "densenet201"),
    *("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_v2_s"),
    *("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"),
    *("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"),
    *("regnet_x_400mf", "regnet_x_800mf", "regnet_x_1_6gf", "regnet_y_400mf", "regnet_y_800mf", "regnet_y_1_6gf"),
    *("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *("squeezenet1_0", "squeezenet1_1", "googlenet", "inception_v3", "convnext_tiny", "swin_t", "swin_v2_t"),
)
SIDES = {"inception_v3": 96}
"""Image sizes of modules that do not take 64 pixels."""
TIMM = (
    *("starnet_s050", "starnet_s100", "starnet_s150", "dla46x_c", "dla46_c", "dla60x_c", "mobilevit_xxs"),
    *("mobilevitv2_050", "edgenext_xx_small", "mobilenetv3_small_050", "mobilenetv3_small_075"),
    *("tf_mobilenetv3_small_075", "lcnet_035", "lcnet_050", "mobilenetv2_035", "mobilenetv2_050"),
    *("ese_vovnet19b_slim_dw", "mobilenetv4_conv_small_035", "mnasnet_small", "tinynet_e"),
)
"""Twenty of the smallest classifiers of timm 1.0.31."""
HUGGING_FACE = ("BERT", "DistilBERT", "GPT-2", "T5 encoder")
RATES = ("p", "drop_prob", "drop_rate", "dropout", "dropout_p", "attention_dropout", "attn_drop", "proj_drop")
"""Attributes of submodules that hold a rate of dropout."""


@dataclass(frozen=True)
class Popular:
    """A module of a library.

    Attributes:
        library: Package of the module.
        name: Name in the package.
        side: Size of its square images in pixels; 0 for a module that takes words.
        batch: Samples per step.
    """

    library: str
    name: str
    side: int
    batch: int = 4

    @property
    def input(self) -> str:
        """Shape of a sample, for tables."""
        return f"3 x {self.side} x {self.side}" if self.side else f"{LENGTH} words"

    def data(self, samples: int) -> tuple[Tensor, Tensor]:
        """Return noise and labels; for GPT-2 words and the words that follow them."""
        generator = torch.Generator().manual_seed(1)
        labels = torch.randint(0, CLASSES, (samples,), generator=generator)
        if self.side:
            return torch.randn(samples, 3, self.side, self.side, generator=generator), labels
        words = torch.randint(1, WORDS, (samples, LENGTH + 1), generator=generator)
        if self.name == "GPT-2":
            return words[:, :-1].contiguous(), words[:, 1:].contiguous()
        return words[:, :-1].contiguous(), labels

    @staticmethod
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy over the last axis."""
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


class Logits(nn.Module):
    """A Hugging Face model whose output is one tensor instead of an object."""

    def __init__(self, model: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.head = model, head

    def forward(self, words: Tensor) -> Tensor:
        output = self.model(input_ids=words)
        if self.head is None:
            logits: Tensor = output.logits
            return logits
        pooled: Tensor = self.head(output.last_hidden_state.mean(dim=1))
        return pooled


def make(popular: Popular) -> nn.Module:
    """Make a module in training mode, with weights drawn from one seed and all rates of dropout 0."""
    torch.manual_seed(0)
    module = MAKERS[popular.library](popular).train()
    for part in module.modules():
        for name in RATES:
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    size = sum(value.numel() for value in module.parameters())
    if size >= MAX_PARAMETERS:
        raise ValueError(f"{popular.name}: has {size} parameters")
    return module


def _torchvision(popular: Popular) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    options: dict[str, Any] = {}
    if popular.name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    module: nn.Module = models.get_model(popular.name, weights=None, num_classes=CLASSES, **options)
    return module


def _timm(popular: Popular) -> nn.Module:
    module: nn.Module = importlib.import_module("timm").create_model(popular.name, num_classes=CLASSES)
    return module


def _hugging_face(popular: Popular) -> nn.Module:
    hub = importlib.import_module("transformers")
    small: dict[str, Any]
    common = {"vocab_size": WORDS, "num_labels": CLASSES}
    if popular.name == "BERT":
        small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        small |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return Logits(hub.BertForSequenceClassification(hub.BertConfig(**common, **small)))
    if popular.name == "DistilBERT":
        small = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
        small |= {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
        return Logits(hub.DistilBertForSequenceClassification(hub.DistilBertConfig(**common, **small)))
    if popular.name == "GPT-2":
        small = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
        small |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return Logits(hub.GPT2LMHeadModel(hub.GPT2Config(vocab_size=WORDS, use_cache=False, **small)))
    small = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    return Logits(hub.T5EncoderModel(hub.T5Config(vocab_size=WORDS, **small)), nn.Linear(64, CLASSES))


MAKERS: dict[str, Callable[[Popular], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _hugging_face,
}
MODULES = (
    *(Popular("torchvision", name, SIDES.get(name, 64)) for name in TORCHVISION),
    *(Popular("timm", name, 64) for name in TIMM),
    *(Popular("transformers", name, 0) for name in HUGGING_FACE),
)
