"""A whole run in plain torch, one client after the other: the oracle for the trainer.

Copies of a module, torch.optim.SGD, torch's sampler and loader, the mean of the parameters. What counters, random draws
and images are is tested elsewhere; here they are taken from those tests' oracles and from fastlocal's references.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms.v2 import functional as vision

from fastlocal.config.schema import RunConfig
from fastlocal.data.sample_streams import Streams, StreamSpec
from fastlocal.data.types import DataSet
from fastlocal.kernels import get
from fastlocal.kernels.gather_augment.reference import crop_boxes
from fastlocal.schedule.rounds import RoundSchedule
from tests.helpers import step_by_step

PADDING = 4
NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass
class PlainRun:
    """steps: (step, client, rate, loss)        metrics: rows        files: {name: state_dict}"""

    steps: list[tuple[int, int, float, float]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class PlainProgram:
    """config: with steps_per_epoch, mean and std; float64 throughout."""

    def __init__(
        self,
        config: RunConfig,
        data: DataSet,
        module: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        self.config, self.data, self.loss = config, data, loss
        self.clients = [copy.deepcopy(module).double().train() for _ in range(config.clients)]
        self.optimizers = [self.optimizer(client) for client in self.clients]
        self.plan = step_by_step.count(config)
        self.average = [value.detach().clone() for value in self.clients[0].parameters()]
        self.batchnorm = any(isinstance(part, _BatchNorm) for part in module.modules())
        self.estimated = False
        self.topk = (1, 5) if config.schedule.schedule == "epochs" else (1,)
        self.done = self.samples = 0
        self.loss_sum, self.correct, self.best = 0.0, [0.0] * len(self.topk), 0.0
        self.run = PlainRun()
        assert config.schedule.steps_per_epoch is not None
        self.per_epoch = config.schedule.steps_per_epoch
        self.streams = Streams(
            StreamSpec(
                samples=len(data.train),
                clients=config.clients,
                batch_size=config.client.batch_size,
                steps_per_epoch=self.per_epoch,
                replacement=config.client.replacement,
                seed=config.machine.seed,
            )
        )

    def optimizer(self, client: nn.Module) -> torch.optim.SGD:
        sgd = self.config.sgd
        free = [
            value
            for part in client.modules()
            for name, value in part.named_parameters(recurse=False)
            if sgd.group_weight and (isinstance(part, NORMS) or name == "bias")
        ]
        decayed = [value for value in client.parameters() if all(value is not other for other in free)]
        groups = [{"params": decayed, "weight_decay": sgd.wd}, {"params": free, "weight_decay": 0.0}]
        return torch.optim.SGD(groups, lr=1.0, momentum=sgd.momentum, nesterov=sgd.nesterov)

    def train(self) -> PlainRun:
        if self.config.schedule.eval_on_start:
            assert self.plan.start is not None
            self.report(self.plan.start)
        for planned in self.plan.rounds:
            for name in planned.phase_files[0]:
                self.save(name)
            for step in range(planned.first_step, planned.first_step + planned.local_steps):
                self.local_steps(step)
            self.done = planned.first_step + planned.local_steps
            if planned.averaged:
                self.take_mean()
            if planned.evaluate:
                self.report(planned)
            for name in planned.phase_files[1]:
                self.save(name)
        return self.run

    def local_steps(self, step: int) -> None:
        batches = self.epoch_order(step // self.per_epoch)
        for number, (client, optimizer) in enumerate(zip(self.clients, self.optimizers, strict=True)):
            index = (step % self.per_epoch) * len(self.clients) + number
            ids = batches[index] if batches else self.streams.sample_ids(step, 1, range(number, number + 1))[0, 0]
            targets = self.data.train.targets[ids]
            for group in optimizer.param_groups:
                group["lr"] = self.plan.rates[step]
            optimizer.zero_grad()
            outputs = client(self.inputs(ids, number, step))
            loss = self.loss(outputs, self.noisy(targets, number, step))
            loss.backward()
            if self.config.sgd.clip_norm is not None:
                nn.utils.clip_grad_norm_(client.parameters(), self.config.sgd.clip_norm)
            optimizer.step()
            self.loss_sum += loss.item() * len(ids)
            self.samples += len(ids)
            self.correct = [a + b for a, b in zip(self.correct, self.count_correct(outputs, targets), strict=True)]
            self.run.steps.append((step, number, self.plan.rates[step], loss.item()))

    def epoch_order(self, epoch: int) -> list[Tensor]:
        """The batches of an epoch, in which clients take turns; none where they are drawn with replacement."""
        if self.config.client.replacement:
            return []
        numbers = range(len(self.data.train))
        sampler: DistributedSampler[int] = DistributedSampler(
            numbers,
            num_replicas=1,
            rank=0,
            seed=self.config.machine.seed,  # type: ignore[arg-type]
        )
        sampler.set_epoch(epoch)
        size = self.config.client.batch_size
        return list(DataLoader(numbers, batch_size=size, sampler=sampler, drop_last=True))  # type: ignore[arg-type]

    def inputs(self, ids: Tensor, client: int, step: int) -> Tensor:
        """Augmented one by one with the boxes drawn for this client and step."""
        images = self.data.train.inputs[ids]
        if not self.config.data.aug:
            return self.normalised(images)
        boxes = crop_boxes(self.config.machine.seed, torch.tensor([client]), step, len(ids), PADDING)
        cut = []
        for image, top, left, flip in zip(images, *(part[0].tolist() for part in boxes), strict=True):
            cropped = vision.crop(vision.pad(image, [PADDING]), top, left, *image.shape[1:])
            cut.append(vision.horizontal_flip(cropped) if flip else cropped)
        return self.normalised(torch.stack(cut))

    def normalised(self, images: Tensor) -> Tensor:
        if self.data.mean is None or self.data.std is None:
            return images.double() if images.is_floating_point() else images
        mean = torch.tensor(self.data.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(self.data.std, dtype=torch.float64).view(-1, 1, 1)
        return (images.double() / 255 - mean) / std

    def noisy(self, targets: Tensor, client: int, step: int) -> Tensor:
        settings = self.config.client
        if not settings.label_noise:
            return targets
        assert self.data.classes is not None
        seed, numbers = self.config.machine.seed, torch.tensor([client])
        draw = get("noisy_targets")
        return draw(
            targets[None], p=settings.noise_p, classes=self.data.classes, seed=seed, clients=numbers, step=step
        )[0]

    def count_correct(self, outputs: Tensor, targets: Tensor) -> list[float]:
        order = outputs.argsort(dim=1, descending=True)
        return [(order[:, :k] == targets[:, None]).any(dim=1).double().sum().item() for k in self.topk]

    @torch.no_grad()
    def take_mean(self) -> None:
        self.estimated = False
        everyone = [list(client.parameters()) for client in self.clients]
        self.average = [torch.stack(values).mean(dim=0) for values in zip(*everyone, strict=True)]
        for values in everyone:
            for value, mean in zip(values, self.average, strict=True):
                value.copy_(mean)

    @torch.no_grad()
    def averaged_model(self) -> nn.Module:
        """A copy of client 0 with the mean parameters; local steps have counted in its num_batches_tracked."""
        model = copy.deepcopy(self.clients[0])
        for value, mean in zip(model.parameters(), self.average, strict=True):
            value.copy_(mean)
        return model

    @torch.no_grad()
    def re_estimate(self) -> None:
        """Client 0's BatchNorms see the first batches of the epoch's order, once after each averaging."""
        if self.estimated or not self.batchnorm:
            return
        self.estimated = True
        epoch = max(self.done - 1, 0) // self.per_epoch
        batches = self.epoch_order(epoch)
        there = len(batches) or self.per_epoch * len(self.clients)
        model = self.averaged_model()
        norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
        for index in range(min(self.config.model.bn_batches, there)):
            step, client = divmod(index, len(self.clients))
            step += epoch * self.per_epoch
            ids = batches[index] if batches else self.streams.sample_ids(step, 1, range(client, client + 1))[0, 0]
            for norm in norms:
                norm.momentum = 1 / (index + 1)
            model.train()(self.inputs(ids, client, step))
        self.clients[0].load_state_dict({**self.clients[0].state_dict(), **self.buffers_of(model)})

    @staticmethod
    def buffers_of(model: nn.Module) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.named_buffers() if name in model.state_dict()}

    @torch.no_grad()
    def report(self, planned: RoundSchedule) -> None:
        self.re_estimate()
        model = self.averaged_model().eval()
        targets = self.data.test.targets
        outputs = model(self.normalised(self.data.test.inputs))
        right = [count / len(targets) for count in self.count_correct(outputs, targets)]
        self.best = max(self.best, right[0])
        row = {"epoch": planned.epoch, "comm_round": planned.comm_round, "train_loss": 0.0, "best_acc": self.best}
        for k, correct, accuracy in zip(self.topk, self.correct, right, strict=True):
            row |= {f"train_acc{k}": correct / max(self.samples, 1), f"val_acc{k}": accuracy}
        row["train_loss"] = self.loss_sum / max(self.samples, 1)
        row |= {"val_loss": self.loss(outputs, targets).item(), "iter": planned.iteration, "lr": planned.learning_rate}
        self.run.metrics.append(row)
        self.loss_sum, self.correct, self.samples = 0.0, [0.0] * len(self.topk), 0
        self.keep(model, "latest.pt")
        if planned.save_as is not None:
            self.keep(model, planned.save_as)

    def save(self, name: str) -> None:
        self.re_estimate()
        self.keep(self.averaged_model(), name)

    def keep(self, model: nn.Module, name: str) -> None:
        self.run.files[name] = {key: value.clone() for key, value in model.state_dict().items()}
