"""Flower's client, in a module that Ray's workers can import."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from nets import torch_module
from protocol import Workload, read
from torch_client import make_optimizer, train_client

client = ClientApp()


def workload() -> Workload:
    """Return the workload."""
    return read(Path(os.environ["PEER_FOLDER"]), os.environ["PEER_FACTS"])


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train one client of a round; `place` says which."""
    torch.set_num_threads(1)
    work = workload()
    number, place = (int(message.content["place"][key]) for key in ("number", "place"))
    module = torch_module(work.net)
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train_client(module, make_optimizer(work, module), *work.samples(number, place))
    metrics = MetricRecord({"num-examples": work.samples_per_client})
    content = RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)
