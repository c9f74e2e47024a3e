"""DrJAX: a round is one compiled call, vmap over clients of an unrolled scan over their steps, then the mean.

The momentum of each client is carried along. XLA's convolutions inside a loop are slower on a CPU: hence unrolled,
where the steps are few.
"""

from __future__ import annotations

from typing import Any

import drjax
import jax
import jax.numpy as jnp
import numpy as np
from nets import jax_images, jax_loss
from protocol import Turns, read_workload

MAX_UNROLLED = 16
"""Local steps that are unrolled at most."""


def main() -> None:
    """Train until nobody asks any more."""
    turns, work = Turns(), read_workload()
    tree_map = jax.tree_util.tree_map
    convolves = len(work.shape) == 3
    unroll = work.local_steps if convolves and work.local_steps <= MAX_UNROLLED else 1

    def step(carry: Any, batch: Any) -> Any:
        params, momentum = carry
        gradient = jax.grad(lambda params: jax_loss(work.net, params, *batch))(params)
        gradient = tree_map(lambda g, p: g + work.weight_decay * p, gradient, params)
        momentum = tree_map(lambda m, g: work.momentum * m + g, momentum, gradient)
        return (tree_map(lambda p, m: p - work.lr * m, params, momentum), momentum), None

    def client(params: Any, momentum: Any, inputs: Any, targets: Any) -> Any:
        return jax.lax.scan(step, (params, momentum), (inputs, targets), unroll=unroll)[0]

    @drjax.program(placements={"clients": work.clients})
    def train(params: Any, momentum: Any, inputs: Any, targets: Any) -> Any:
        params, momentum = drjax.map_fn(client, (drjax.broadcast(params), momentum, inputs, targets))
        return drjax.reduce_mean(params), momentum

    compiled = jax.jit(train, donate_argnums=(0, 1))
    params = {name: jnp.asarray(value) for name, value in work.start.items()}
    state = [params, tree_map(lambda value: jnp.zeros((work.clients, *value.shape), value.dtype), params)]

    def train_round(number: int) -> None:
        rows = [work.samples(number, place) for place in range(work.clients)]
        inputs, targets = (np.stack(values) for values in zip(*rows, strict=True))
        state[:] = compiled(*state, jax_images(inputs, work.shape), targets)
        jax.block_until_ready(state)

    def loss() -> float:
        inputs, targets = work.check_samples()
        return float(jax_loss(work.net, state[0], jax_images(inputs, work.shape), targets))

    turns.ready(loss, momentum="kept", packages=("drjax", "jax", "jaxlib"))
    turns.serve(train_round)


if __name__ == "__main__":
    main()
