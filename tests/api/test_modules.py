"""fastlocal.train on modules of one's own: what they may do, and what is refused or trained one client at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.table_fit import fit


class WordCount(nn.Module):
    """Classifies token sequences by the mean of their embeddings."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.dropout(self.embedding(tokens).mean(dim=1)))


def sentences() -> dict[str, tuple[Tensor, Tensor]]:
    tokens = torch.randint(0, 20, (320, 12), generator=torch.Generator().manual_seed(3))
    labels = (tokens == 3).any(dim=1).long()
    return {"train": (tokens[:240].int(), labels[:240]), "test": (tokens[240:].int(), labels[240:])}


def test_text_of_integer_tokens(tmp_path: Path) -> None:
    run = fit(tmp_path, WordCount(), rounds=60, lr=1.0, momentum=0.9, eval_every=60, **sentences())
    assert run.history[-1]["val_acc1"] > 0.8


def test_dropout_trains_and_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = WordCount(dropout=0.3)
    first = fit(tmp_path, module, "first", progress=True, **sentences())
    assert "random" not in capsys.readouterr().err
    torch.rand(5)
    again = fit(tmp_path, module, "again", **sentences())
    assert first.history == again.history


class NeedsValues(nn.Module):
    """Branches on a value, which vmap cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.linear(inputs)
        return out if out.sum().item() > 0 else out * 2


def test_what_vmap_cannot_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match='vmap cannot take this model .*executor="looped" trains it'):
        fit(tmp_path, NeedsValues(), executor="stacked")
    assert not (tmp_path / "run").exists()
    run = fit(tmp_path, NeedsValues(), progress=True, rounds=30)
    assert run.history[-1]["val_acc1"] > 0.8
    assert capsys.readouterr().err.count('training with executor="looped"') == 1


class PaddedWords(nn.Module):
    """Uses the functional embedding, whose vmap rule in torch finds the padding row of the first client alone."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(20, 8, generator=torch.Generator().manual_seed(5)))
        self.output = nn.Linear(8, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(nn.functional.embedding(tokens, self.words, padding_idx=3).mean(dim=1))


def test_the_padding_row_of_no_client_is_trained(tmp_path: Path) -> None:
    module = PaddedWords()
    run = fit(tmp_path, module, executor="stacked", weight_decay=0.0, **sentences())
    trained = run.model.state_dict()["words"]
    assert torch.equal(trained[3], module.words[3]) and not torch.equal(trained[4], module.words[4])


def test_uint8_images_with_batchnorm_and_augmentation(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (96, 3, 8, 8), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    labels = (images[:, 0].float().mean(dim=(1, 2)) > 127).long()
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    module(torch.zeros(2, 3, 8, 8))
    run = fit(
        tmp_path,
        module,
        train=(images[:64], labels[:64]),
        test=(images[64:], labels[64:]),
        clients=4,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        aug=True,
        rounds=5,
    )
    norm = run.model[1]  # type: ignore[index]
    assert isinstance(norm, nn.BatchNorm2d) and not torch.equal(norm.running_mean, torch.zeros(4))  # type: ignore[arg-type]
    assert run.history[-1]["val_loss"] < 5
