"""The rule by which runs of small rounds train with one intra-op thread."""

from __future__ import annotations

from .memory_plan import MemoryPlan

SMALL = 2**17
"""Numbers of a tensor up to which one thread is as fast: torch splits operations on 2^15 numbers or more among threads.
A round of 10 clients x 6 steps x 10 samples of logistic regression on 784 inputs takes 2.8 ms with one thread or two,
and 47 ms with two while another process uses one of their cores.
"""
SMALL_BATCH = 16
"""Samples up to which the same holds for the products of such a tensor of weights."""


def suits_one_thread(memory: MemoryPlan) -> bool:
    """Return True if a step's parameters and activations are small, by sizes alone: a resumed run has the same bits."""
    needs, per_client = memory.needs, memory.needs.activations
    if needs.device != "cpu" or not per_client.per_sample:  # activations are unknown
        return False
    at_once = memory.chunk if needs.in_place else 1
    params = needs.row // needs.item
    activations = at_once * (per_client.fixed + per_client.per_sample * needs.batch) // needs.item
    products = at_once * params * needs.batch
    return max(memory.chunk * params, activations, products // SMALL_BATCH) <= SMALL
