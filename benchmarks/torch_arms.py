"""The same meta step in PyTorch, as its users would write it."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from reptile_jax import models


class _Net(nn.Module):
    """`models.ConvNet`, NCHW, with the zero padding of 'SAME' that the paper's TensorFlow has."""

    def __init__(self, like: models.ConvNet, channels: int, size: int):
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


def _module(model, tasks) -> tuple[nn.Module, torch.Tensor, torch.Tensor, Callable]:
    inputs, targets = (_to_torch(leaf) for leaf in tasks.support)
    if isinstance(model, models.ConvNet):
        size, channels = tasks.support.inputs.shape[-2:]
        return _Net(model, channels, size), inputs, targets, F.cross_entropy
    return _Mlp(), inputs, targets, F.mse_loss


def eager(model, tasks, optimizer: Callable) -> Callable:
    """Task after task: load θ, step on each mini-batch, add up the deltas.

    Args:
      model: the Flax model that it is the like of.
      tasks: a meta-batch of the library's.
      optimizer: makes the inner optimiser of parameters; kept from task to task.
    """
    module, inputs, targets, loss_fn = _module(model, tasks)
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
                loss_fn(module(x), y).backward()
                inner.step()
            with torch.no_grad():
                torch._foreach_add_(total, params)
                torch._foreach_sub_(total, theta)
        with torch.no_grad():
            torch._foreach_copy_(params, theta)
            torch._foreach_add_(params, total, alpha=1 / len(inputs))
        return None

    return arm


def vectorised(model, tasks, rate: float, adam: bool) -> Callable:
    """All tasks at once: `torch.func.vmap` over per-task parameters, the optimiser by hand."""
    module, inputs, targets, loss_fn = _module(model, tasks)
    number = len(inputs)
    theta = {k: v.detach().clone() for k, v in module.named_parameters()}
    stack_module_state([module])  # checks that the module can be vectorised

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
        return None

    return arm
