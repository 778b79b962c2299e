"""The same meta step in PyTorch, as its users would write it."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

import reptile_jax as rj


class _Net(nn.Module):
    """`rj.nn.ConvNet` in NCHW, with the zero padding of 'SAME' that the paper's TensorFlow has."""

    def __init__(self, like: rj.nn.ConvNet, channels: int, size: int):
        super().__init__()
        self.stride, self.pool = (1, True) if like.pool else (2, False)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for _ in range(like.blocks):
            self.convs.append(nn.Conv2d(channels, like.features, 3, self.stride))
            self.norms.append(nn.BatchNorm2d(like.features, 1e-3, track_running_stats=False))
            channels, size = like.features, -(-size // 2)
        self.head = nn.Linear(channels * size * size, like.ways)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            even = x.shape[-1] % 2 == 0 and self.stride == 2
            x = norm(conv(F.pad(x, (0, 1, 0, 1) if even else (1, 1, 1, 1))))
            if self.pool:
                x = F.max_pool2d(x, 2, ceil_mode=True)
            x = F.relu(x)
        return self.head(x.flatten(1))


class _Mlp(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
        )


def _to_torch(array) -> torch.Tensor:
    tensor = torch.from_numpy(np.array(array))
    if tensor.ndim == 6:  # images [tasks, steps, batch, h, w, c]
        return tensor.movedim(-1, 3).contiguous()
    return tensor.long() if tensor.dtype == torch.int32 else tensor


def _module(model, params, tasks) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Callable]:
    """The network at `params`, the tasks' mini-batches, and the loss."""
    inputs, targets = (_to_torch(leaf) for leaf in tasks.support)
    if isinstance(model, rj.nn.ConvNet):
        size, channels = tasks.support.inputs.shape[-2:]
        module, loss_fn = _Net(model, channels, size), F.cross_entropy
    else:
        module, loss_fn = _Mlp(), F.mse_loss
    with torch.no_grad():
        for ours, theirs in zip(from_flax(params), module.parameters(), strict=True):
            theirs.copy_(ours)
    return module, inputs, targets, loss_fn


def from_flax(params) -> list[torch.Tensor]:
    """Flax's parameters in the order and the layout of the modules above."""
    layers = params["params"]
    ordered, channels = [], None
    for kind, names in (("Conv_", ("kernel", "bias")), ("BatchNorm_", ("scale", "bias"))):
        count = sum(name.startswith(kind) for name in layers)
        for index in range(count):
            for name in names:
                leaf = np.array(layers[f"{kind}{index}"][name])
                channels = leaf.shape[-1]
                ordered.append(leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf)
    for index in range(sum(name.startswith("Dense_") for name in layers)):
        kernel = np.array(layers[f"Dense_{index}"]["kernel"])
        if channels:  # flattened pixels: Flax's have the channel last, PyTorch's first
            pixels = kernel.shape[0] // channels
            kernel = kernel.reshape(pixels, channels, -1).transpose(1, 0, 2)
            kernel = kernel.reshape(channels * pixels, -1)
        ordered += [kernel.T, np.array(layers[f"Dense_{index}"]["bias"])]
    return [torch.from_numpy(np.ascontiguousarray(leaf)) for leaf in ordered]


def one_by_one(
    model,
    params,
    tasks,
    optimizer: Callable,
    *,
    channels_last: bool = False,
    compiled: bool = False,
) -> Callable:
    """Task after task: load θ, step on each mini-batch, add up the deltas.

    Args:
      model, params: the Flax model that it is the like of, and where it starts.
      tasks: a meta-batch of the library's.
      optimizer: makes the inner optimiser of parameters; kept from task to task.
      channels_last: the memory format of images and kernels.
      compiled: network and loss by `torch.compile`, which needs a C++ compiler.

    Returns:
      A function that takes one meta step and returns the new parameters.
    """
    module, inputs, targets, loss_fn = _module(model, params, tasks)
    if channels_last:  # of [tasks, steps, batch, c, h, w], which is no memory format's
        module.to(memory_format=torch.channels_last)
        inputs = inputs.movedim(3, -1).contiguous().movedim(-1, 3)
    loss_of = lambda x, y: loss_fn(module(x), y)
    loss_of = torch.compile(loss_of) if compiled else loss_of
    params = list(module.parameters())
    inner = optimizer(params)

    def arm():
        with torch.no_grad():
            theta = [p.clone() for p in params]
            total = [torch.zeros_like(p) for p in params]
        for task_inputs, task_targets in zip(inputs, targets, strict=True):
            with torch.no_grad():
                torch._foreach_copy_(params, theta)
            for x, y in zip(task_inputs, task_targets, strict=True):
                inner.zero_grad(set_to_none=True)
                loss_of(x, y).backward()
                inner.step()
            with torch.no_grad():
                torch._foreach_add_(total, params)
                torch._foreach_sub_(total, theta)
        with torch.no_grad():
            torch._foreach_copy_(params, theta)
            torch._foreach_add_(params, total, alpha=1 / len(inputs))
        return params

    return arm


def vectorised(model, params, tasks, rate: float, adam: bool) -> Callable:
    """All tasks at once: `torch.func.vmap` over per-task parameters, the optimiser by hand."""
    module, inputs, targets, loss_fn = _module(model, params, tasks)
    number = len(inputs)
    theta = {k: v.detach().clone() for k, v in module.named_parameters()}

    def loss(params, x, y):
        return loss_fn(functional_call(module, params, (x,)), y)

    gradients = vmap(grad(loss))

    def arm():
        params = {k: v.expand(number, *v.shape).clone() for k, v in theta.items()}
        moment = {k: torch.zeros_like(v) for k, v in params.items()}
        for step in range(inputs.shape[1]):
            grads = gradients(params, inputs[:, step], targets[:, step])
            for k, g in grads.items():
                if adam:
                    moment[k].mul_(0.999).addcmul_(g, g, value=0.001)
                    scale = (moment[k] / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
                    params[k].addcdiv_(g, scale, value=-rate)
                else:
                    params[k].sub_(g, alpha=rate)
        for k in theta:
            theta[k].add_((params[k] - theta[k]).mean(0))
        return list(theta.values())

    return arm
