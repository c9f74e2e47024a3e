"""The stacked operations as torch knows them: registered soundly, and reached by whatever a user's module calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fastlocal.kernels import functional
from fastlocal.kernels.conv2d_clients.operator import conv2d_stacked, conv2d_stacked_backward
from fastlocal.kernels.functional import StackedOps
from fastlocal.kernels.norm_act.operator import norm_act_stacked, norm_act_stacked_backward
from fastlocal.kernels.norm_act.reference import ACTIVATIONS
from fastlocal.models.cifar_resnet import resnet

CLIENTS, BATCH = 3, 2
WINDOW = ([2, 1], [1, 2], [1, 2], 2)
STRUCTURE = ("test_schema", "test_faketensor")
"""Of torch.library.opcheck, what there is to check of an operator that autograd does not know."""


def normal(*shape: int, grad: bool = True, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(grad)


def last(x: Tensor) -> Tensor:
    """The same values in channels-last memory."""
    return x.detach().movedim(2, -1).contiguous().movedim(-1, 2).requires_grad_(x.requires_grad)


@pytest.mark.parametrize("strategy", ["grouped", "loop", "im2col", "auto"])
def test_the_convolution_is_registered_soundly(strategy: str) -> None:
    x, weight, bias = normal(3, 2, 4, 5, 6), normal(3, 6, 2, 3, 3), normal(3, 6)
    grad = normal(3, 2, 6, 3, 6, grad=False)
    torch.library.opcheck(conv2d_stacked, (x, weight, bias, *WINDOW, strategy))
    torch.library.opcheck(conv2d_stacked, (last(x), weight, None, *WINDOW, strategy))
    saved = (grad, x.detach(), weight.detach(), *WINDOW, strategy)
    torch.library.opcheck(conv2d_stacked_backward, (*saved, True, True))
    torch.library.opcheck(conv2d_stacked_backward, (*saved, False, True))


def test_what_runs_in_triton_is_registered_soundly() -> None:
    """Shapes, strides and dtypes of fake tensors are those of the kernels, and what they write is their own."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def given(*shape: int) -> Tensor:
        return normal(*shape, grad=False, dtype=torch.float32).to(device).requires_grad_()

    x, weight, bias, window = given(2, 1, 4, 3, 4), given(2, 2, 2, 3, 2), given(2, 2), (*WINDOW, "triton")
    torch.library.opcheck(conv2d_stacked, (last(x), weight, bias, *window))
    torch.library.opcheck(conv2d_stacked, (x, weight, bias, *window), test_utils=STRUCTURE)
    saved = (given(2, 1, 2, 2, 6).detach(), x.detach(), weight.detach(), *window)
    for need_x, need_weight in ((True, True), (True, False)):
        torch.library.opcheck(conv2d_stacked_backward, (*saved, need_x, need_weight), test_utils=STRUCTURE)
    options = (2, 1e-5, "silu", "triton")
    inputs = (last(x), given(2, 4), given(2, 4), last(x))
    torch.library.opcheck(norm_act_stacked, (*inputs, *options))
    with torch.no_grad():
        _, mean, rstd = norm_act_stacked(*inputs, *options)
    saved = (x.detach(), *(tensor.detach() for tensor in inputs), mean, rstd, *options)
    torch.library.opcheck(norm_act_stacked_backward, saved, test_utils=STRUCTURE)


@pytest.mark.parametrize(("groups", "activation"), [(2, "silu"), (0, "relu"), (4, "none")])
def test_the_norms_are_registered_soundly(groups: int, activation: str) -> None:
    x, weight, bias, residual = normal(3, 2, 4, 3, 2), normal(3, 4), normal(4, 3).T, normal(3, 2, 4, 3, 2)
    options = (groups, 1e-5, activation, "auto")
    torch.library.opcheck(norm_act_stacked, (x, weight, bias, residual, *options))
    torch.library.opcheck(norm_act_stacked, (last(x), weight, None, None, *options))
    with torch.no_grad():
        _, mean, rstd = norm_act_stacked(x, weight, bias, residual, *options)
        saved = (normal(3, 2, 4, 3, 2), x, weight, bias, residual, mean, rstd)
    torch.library.opcheck(norm_act_stacked_backward, tuple(t.detach() for t in saved) + options)


@pytest.mark.parametrize("strategy", ["grouped", "loop", "im2col"])
def test_gradients_of_the_convolution(strategy: str) -> None:
    inputs = (normal(2, 2, 4, 3, 4), normal(2, 4, 2, 2, 3), normal(2, 4))
    assert torch.autograd.gradcheck(lambda *given: conv2d_stacked(*given, *WINDOW, strategy), inputs)


@pytest.mark.parametrize("groups", [2, 0])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_the_norms(groups: int, activation: str) -> None:
    inputs = (normal(2, 2, 4, 2, 3), normal(2, 4), normal(2, 4), normal(2, 2, 4, 2, 3))
    assert torch.autograd.gradcheck(
        lambda *given: norm_act_stacked(*given, groups, 1e-5, activation, "reference")[0], inputs
    )


@pytest.mark.parametrize("batched", ["images filters biases", "images", "filters", "images biases", "biases"])
@pytest.mark.parametrize("groups", [1, 2])
def test_vmap_over_some_of_the_inputs(batched: str, groups: int) -> None:
    x, weight, bias = normal(CLIENTS, BATCH, 4, 5, 5), normal(CLIENTS, 6, 4 // groups, 3, 3), normal(CLIENTS, 6)
    dims = tuple(0 if name in batched.split() else None for name in ("images", "filters", "biases"))
    inputs = [part if dim == 0 else part[0] for part, dim in zip((x, weight, bias), dims, strict=True)]
    ours = vmap(lambda *given: functional.conv2d(*given, 2, 1, 1, groups, strategy="loop"), dims)(*inputs)
    torchs = vmap(lambda *given: F.conv2d(*given, 2, 1, 1, groups), dims)(*inputs)
    torch.testing.assert_close(ours, torchs)
    weights = torch.rand_like(torchs)
    for found, exact in zip(*(torch.autograd.grad((y * weights).sum(), inputs) for y in (ours, torchs)), strict=True):
        torch.testing.assert_close(found, exact)


def test_vmap_over_vmap() -> None:
    x, weight = normal(2, CLIENTS, BATCH, 3, 4, 4), normal(CLIENTS, 2, 5, 3, 3, 3)
    ours = vmap(vmap(lambda *given: functional.conv2d(*given, strategy="loop")), (0, 1))(x, weight)
    torch.testing.assert_close(ours, vmap(vmap(F.conv2d), (0, 1))(x, weight))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("padding", "kernel", "dilation"),
    [("same", (4, 3), 1), ("same", (2, 4), (1, 3)), ("valid", (3, 3), 1), ((2, 0), (3, 3), 2)],
)
def test_padding_in_every_way_that_torch_takes(padding: Any, kernel: tuple[int, int], dilation: Any) -> None:
    x, weight = normal(BATCH, 3, 9, 10), normal(4, 3, *kernel)
    torch.testing.assert_close(
        functional.conv2d(x, weight, None, 1, padding, dilation, strategy="loop"),
        F.conv2d(x, weight, None, 1, padding, dilation),
    )


class Everything(nn.Module):
    """What a user's module may call, by every route, with and without the optional parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.reflecting = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.depthwise = nn.Conv2d(8, 8, (3, 1), stride=(1, 2), padding="valid", groups=8, bias=False)
        self.group = nn.GroupNorm(2, 8)
        self.batch = nn.BatchNorm2d(8, affine=False, track_running_stats=False)
        self.flat = nn.BatchNorm1d(8, track_running_stats=False)
        self.weight = nn.Parameter(torch.randn(8, 4, 1, 1) / 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.group(self.reflecting(x)))
        x = self.batch(self.depthwise(x))
        x = F.group_norm(F.conv2d(x, self.weight, groups=2), num_groups=4, eps=1e-3)
        return self.flat(x.mean(dim=(2, 3)))


def clients_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters of CLIENTS clients that differ."""
    draw = torch.Generator().manual_seed(1)
    return {
        name: torch.stack(
            [
                value.detach() + 0.1 * torch.randn(value.shape, generator=draw, dtype=value.dtype).to(value.device)
                for _ in range(CLIENTS)
            ]
        ).requires_grad_()
        for name, value in module.named_parameters()
    }


def loss_of(module: nn.Module, mode: Callable[[], Any]) -> Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]:
    def one(params: dict[str, Tensor], images: Tensor, targets: Tensor) -> Tensor:
        with mode():
            return F.cross_entropy(functional_call(module, params, (images,)), targets)

    return lambda params, images, targets: vmap(one)(params, images, targets).sum()


def check_against_the_loop(module: nn.Module, run: Callable[..., Tensor], size: int) -> None:
    """Gradients of all clients at once equal those of each in turn, through plain torch."""
    params = clients_of(module)
    images = normal(CLIENTS, BATCH, 3, size, size, grad=False)
    targets = torch.arange(CLIENTS * BATCH).view(CLIENTS, BATCH) % 8
    found = torch.autograd.grad(run(params, images, targets), list(params.values()))
    for client in range(CLIENTS):
        own = {name: value.detach()[client].requires_grad_() for name, value in params.items()}
        loss = F.cross_entropy(functional_call(module, own, (images[client],)), targets[client])
        for name, grads, exact in zip(own, found, torch.autograd.grad(loss, list(own.values())), strict=True):
            torch.testing.assert_close(grads[client], exact, msg=lambda text, name=name: f"{name}: {text}")


def ours() -> StackedOps:
    """All of our operations, also where torch's own are faster."""
    return StackedOps("loop", norms="reference")


def reached(module: nn.Module) -> set[str]:
    """Which of the stacked operations a forward and a backward pass of the module reach."""
    with torch.profiler.profile() as profile:
        params = clients_of(module)
        images = normal(CLIENTS, BATCH, 3, 8, 8, grad=False)
        loss_of(module, ours)(params, images, torch.zeros(CLIENTS, BATCH, dtype=torch.int64)).backward()
    return {event.name for event in profile.events() if event.name.startswith("fastlocal::")}


@pytest.mark.parametrize("strategy", ["auto", "grouped", "im2col"])
def test_whatever_a_module_calls_is_redirected(strategy: str) -> None:
    torch.manual_seed(0)
    module = Everything().double()
    check_against_the_loop(module, loss_of(module, lambda: StackedOps(strategy, "reference")), size=8)
    assert reached(module) == {
        "fastlocal::conv2d_clients",
        "fastlocal::conv2d_clients_backward",
        "fastlocal::norm_act",
        "fastlocal::norm_act_backward",
    }


def test_the_same_through_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    module = Everything()
    names, device = list(dict(module.named_parameters())), "cuda" if torch.cuda.is_available() else "cpu"
    images = normal(CLIENTS, BATCH, 3, 8, 8, grad=False)
    targets = torch.zeros(CLIENTS, BATCH, dtype=torch.int64)
    run = loss_of(module.to(device), lambda: StackedOps("triton", norms="triton"))
    params = clients_of(module)
    found = torch.autograd.grad(run(params, images.to(device).float(), targets.to(device)), list(params.values()))
    wide = {name: value.detach().double().cpu().requires_grad_() for name, value in params.items()}
    exact = torch.autograd.grad(loss_of(module.double().cpu(), ours)(wide, images, targets), list(wide.values()))
    for name, grads, expected in zip(names, found, exact, strict=True):
        atol = 1e-4 * float(expected.abs().max() + 0.1)
        torch.testing.assert_close(
            grads.double().cpu(), expected, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("n_groups", [2, None], ids=["GroupNorm", "BatchNorm"])
def test_a_stacked_resnet20_is_the_looped_one(n_groups: int | None) -> None:
    module = without_running_statistics(resnet(20, 3, 10, n_groups=n_groups).double())
    check_against_the_loop(module, loss_of(module, ours), size=8)


@pytest.mark.usefixtures("scalar_inductor")
def test_compiled_without_a_graph_break() -> None:
    """To the end, by the CPU's own compiler."""
    torch.manual_seed(0)
    norms = nn.GroupNorm(2, 8), nn.BatchNorm2d(8, track_running_stats=False)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), *norms, nn.Flatten()).double()
    run = torch.compile(loss_of(module, ours), fullgraph=True, backend="inductor")
    check_against_the_loop(module, run, size=4)


def without_running_statistics(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return module


def test_what_is_not_ours_stays_torchs() -> None:
    module, x = nn.BatchNorm2d(3), normal(4, 3, 2, 2, grad=False, dtype=torch.float32)
    one_image = normal(3, 5, 5, dtype=torch.float32)
    filters = normal(4, 3, 3, 3, dtype=torch.float32)
    with ours():
        trained = module(x)
        evaluated = module.eval()(x)
        torch.testing.assert_close(F.conv2d(one_image, filters), functional.conv2d(one_image[None], filters)[0])
    assert module.num_batches_tracked == 1 and module.running_mean.abs().sum() > 0
    assert not torch.equal(trained, evaluated)


def test_autocast_lowers_the_convolution_and_keeps_the_norm_in_its_dtype() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    x = normal(2, 3, 6, 6, grad=False, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact = module(x)
        with ours():
            y = module(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact.float(), rtol=2e-2, atol=2e-2)
    y.float().square().sum().backward()
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}


def test_an_explicit_choice_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = normal(2, 3, 5, 5), normal(4, 3, 3, 3)
    with pytest.raises(ValueError, match="unknown strategy 'winograd'; known: auto, grouped, loop, im2col, triton"):
        functional.conv2d(x, weight, strategy="winograd")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="'triton' of conv2d_clients cannot run: no CUDA device"):
            functional.conv2d(x, weight, strategy="triton")
        with pytest.raises(ValueError, match="'triton' of norm_act cannot run: no CUDA device"):
            functional.group_norm(x, 3, backend="triton")
