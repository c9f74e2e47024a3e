"""FedJAX: federated_averaging on its default backend, clients in turn, a compiled call for each local step."""

from __future__ import annotations

import jax
import optax
from nets import jax_images, jax_loss
from protocol import Turns, read_workload


def main() -> None:
    """Train until nobody asks any more."""
    vars(jax)["tree_map"] = jax.tree_util.tree_map  # fedjax 0.0.17 calls what current JAX has removed
    import fedjax
    from fedjax.algorithms import fed_avg

    turns, work = Turns(), read_workload()
    decayed = optax.chain(
        optax.add_decayed_weights(work.weight_decay), optax.sgd(work.lr, momentum=work.momentum or None)
    )
    gradient = jax.jit(jax.grad(lambda params, batch, key: jax_loss(work.net, params, batch["x"], batch["y"])))
    steps = fedjax.ShuffleRepeatBatchHParams(
        batch_size=work.batch, num_epochs=None, num_steps=work.local_steps, skip_shuffle=True
    )
    optimizer = fedjax.optimizers.create_optimizer_from_optax(decayed)
    algorithm = fed_avg.federated_averaging(gradient, optimizer, fedjax.optimizers.sgd(1.0), steps)
    state = [algorithm.init({name: jax.numpy.asarray(value) for name, value in work.start.items()})]

    def train_round(number: int) -> None:
        clients = []
        for place, client in enumerate(work.cohort(number)):
            inputs, targets = work.samples(number, place)
            examples = {"x": jax_images(inputs.reshape(-1, *work.shape), work.shape), "y": targets.reshape(-1)}
            clients.append((b"%d" % client, fedjax.ClientDataset(examples), jax.random.PRNGKey(0)))
        state[0], _ = algorithm.apply(state[0], clients)
        jax.block_until_ready(state[0].params)

    def loss() -> float:
        inputs, targets = work.check_samples()
        return float(jax_loss(work.net, state[0].params, jax_images(inputs, work.shape), targets))

    reset = "reset" if work.momentum else "kept"
    turns.ready(loss, momentum=reset, packages=("fedjax", "jax", "jaxlib", "optax"))
    turns.serve(train_round)


if __name__ == "__main__":
    main()
