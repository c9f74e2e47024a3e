"""One client's forward pass as a function of its tensors, for vmap and torch.func."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.func import functional_call

from ..models.client_random.mode import ClientRandom
from ..models.mirror import Mirror
from ..models.own_tensors import OwnTensors, tensors_of
from ..models.unchanged import Constants

if TYPE_CHECKING:
    from .base import LocalProblem


class Forward:
    """The forward pass and the loss of one client.

    During a call the module has the tensors of `values`; a buffer that the module replaces is replaced in `values`.

    Attributes:
        constants: State of the module that no call may change.
        reached: Names of the user's tensors that the loss or a hook used directly.
    """

    def __init__(self, problem: LocalProblem, module: nn.Module) -> None:
        """Take over a copy of the problem's module; it belongs to this object."""
        self._problem, self._module = problem, module
        self._mirror = Mirror(module, problem.user_module, problem.recomputed)
        self.reached: set[str] = set()
        self._tensor_names: dict[int, str] = {}
        if problem.tensor_names:
            own = tensors_of(module)
            names = *problem.layout.names, *problem.state
            self._tensor_names = {**problem.tensor_names, **{id(own[name]): name for name in names}}
        self.constants = Constants(module, {*problem.state, *problem.layout.names})

    def __call__(
        self,
        values: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        client: Tensor,
        step: Tensor,
        seed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the outputs of one batch.

        Args:
            values: Parameters and buffers by name, without a client axis; changed buffers are written back.
            inputs: [batch, ...].
            targets: [batch, ...].
            client: int64 [], number of the client.
            step: int64 [], global number of the local step.
            seed: int64 [], seed of the random draws; None: that of the problem.
        """
        with self._random(client, step, seed):
            if self._tensor_names:
                with OwnTensors(self._tensor_names, values) as own:
                    result = self._loss(values, inputs, targets)
                self.reached |= own.used
                return result
            return self._loss(values, inputs, targets)

    def outputs(
        self, values: dict[str, Tensor], inputs: Tensor, client: Tensor, step: Tensor, seed: Tensor | None = None
    ) -> Tensor:
        """Return the outputs alone; for losses that use nothing but outputs and targets."""
        with self._random(client, step, seed):
            return self._outputs(values, inputs)

    def _random(self, client: Tensor, step: Tensor, seed: Tensor | None) -> AbstractContextManager[Any]:
        if not self._problem.draws:
            return nullcontext()
        return ClientRandom(self._problem.seed if seed is None else seed, client, step)

    def _loss(self, values: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self._outputs(values, inputs)
        with self._mirror.expose():
            return self._problem.loss(self._problem.numerics.to_param_dtype(outputs), targets), outputs

    def _outputs(self, values: dict[str, Tensor], inputs: Tensor) -> Tensor:
        with self._problem.numerics.autocast():
            outputs: Tensor = functional_call(self._module, values, (inputs,))
        return outputs
