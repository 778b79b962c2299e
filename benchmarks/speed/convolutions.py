"""Formulations of convolution and pooling, forward and backward in a scan, as in inner loops."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

import reptile_jax as rj
from benchmarks.tables import Table
from benchmarks.timing import interleaved, paired_ratio

LAYOUT = ("NHWC", "HWIO", "NHWC")

# (size, channels in, channels out, stride, batch) of the paper's layers.
LAYERS = [
    (28, 1, 64, 2, 10),
    (14, 64, 64, 2, 10),
    (7, 64, 64, 2, 10),
    (4, 64, 64, 2, 10),
    (84, 3, 32, 1, 10),
    (42, 32, 32, 1, 10),
    (21, 32, 32, 1, 10),
    (11, 32, 32, 1, 10),
]


def native(image, kernel, stride):
    """XLA's own convolution and its gradients."""
    return lax.conv_general_dilated(
        image, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUT
    )


def shifted_slices(image, kernel, stride):
    """Nine strided slices side by side and one product; gradients as jax derives them."""
    return jnp.concatenate(_views(image, stride), -1) @ kernel.reshape(-1, kernel.shape[-1])


def nine_products(image, kernel, stride):
    """A sum of nine products, one per tap."""
    taps = kernel.reshape(9, *kernel.shape[2:])
    return sum(view @ tap for view, tap in zip(_views(image, stride), taps, strict=True))


def ours(image, kernel, stride):
    """The library's."""
    return rj.nn.conv_general_dilated(
        image, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUT
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def canonical(image, kernel, stride):
    """XLA's convolution, with gradients that are convolutions in the layout where XLA is fast."""
    return native(image, kernel, stride)


def _canonical_backward(stride, saved, cotangent):
    image, kernel = saved
    padding = _padding(image, stride)
    reach = [(out - 1) * stride for out in cotangent.shape[1:3]]
    sizes = image.shape[1:3]
    to_image = lax.conv_general_dilated(
        cotangent,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        [(2 - low, n - r - 1 + low) for (low, _), n, r in zip(padding, sizes, reach, strict=True)],
        lhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )
    to_kernel = lax.conv_general_dilated(
        image.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        (1, 1),
        [(low, 3 + r - n - low) for (low, _), n, r in zip(padding, sizes, reach, strict=True)],
        rhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )
    return to_image, to_kernel.transpose(1, 2, 0, 3)


canonical.defvjp(
    lambda image, kernel, s: (native(image, kernel, s), (image, kernel)), _canonical_backward
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def batch_groups(image, kernel, stride):
    """XLA's, but under `vmap` the kernels' gradient has `batch_group_count` = tasks.

    That is the form of `grad(vmap)`, for which the GPU compiler has a kernel of cuDNN. It has none
    for the form of `vmap(grad)`, a convolution with a kernel as large as the image.
    """
    return native(image, kernel, stride)


def _batch_groups_backward(stride, saved, cotangent):
    image, kernel = saved
    to_image = jax.vjp(lambda image: native(image, kernel, stride), image)[1](cotangent)[0]
    return to_image, _kernel_gradient(stride, kernel.shape)(image, cotangent)


@functools.cache
def _kernel_gradient(stride, shape):
    def gradient(convolve, lead, image, cotangent):
        kernel = jnp.zeros((*lead, *shape), image.dtype)
        return jax.vjp(lambda kernel: convolve(image, kernel), kernel)[1](cotangent)[0]

    convolve = lambda image, kernel: native(image, kernel, stride)
    of_one = custom_vmap(functools.partial(gradient, convolve, ()))

    @of_one.def_vmap
    def of_many(tasks, batched, image, cotangent):
        if not all(batched):
            raise NotImplementedError("both the images and their cotangents are led by [tasks]")
        return gradient(jax.vmap(convolve), (tasks,), image, cotangent), True

    return of_one


batch_groups.defvjp(
    lambda image, kernel, s: (native(image, kernel, s), (image, kernel)), _batch_groups_backward
)


def _padding(image, stride):
    return lax.padtype_to_pads(image.shape[1:3], (3, 3), (stride, stride), "SAME")


def _views(image, stride):
    image = jnp.pad(image, ((0, 0), *_padding(image, stride), (0, 0)))
    out = (image.shape[1] - 3) // stride + 1
    stop = (out - 1) * stride + 1
    return [
        image[:, i : i + stop : stride, j : j + stop : stride]
        for i, j in itertools.product(range(3), repeat=2)
    ]


def training(formulation, stride, steps, *, dtype=jnp.float32, axis=jax.vmap):
    """`steps` of gradient descent on a kernel, with the image's gradient taken as well.

    Args:
      formulation: `(image, kernel, stride) -> output`.
      dtype: what the convolution is given; kernel and image themselves stay in float32.
      axis: how tasks run, `jax.vmap` or `one_after_another`; None for a single task.
    """

    def loss(kernel, image):
        out = formulation(image.astype(dtype), kernel.astype(dtype), stride)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    def descend(kernel, image):
        def step(carry, _):
            kernel, image = carry
            to_kernel, to_image = jax.grad(loss, (0, 1))(kernel, image)
            return (kernel - 1e-9 * to_kernel, image - 1e-9 * to_image), None

        return lax.scan(step, (kernel, image), length=steps)[0]

    return jax.jit(axis(descend) if axis else descend)


def one_after_another(function):
    """Tasks in a loop, as the library runs them on a CPU."""
    return lambda *args: lax.map(lambda arg: function(*arg), args)


def formulations(quick: bool = False) -> Table:
    """Ways to write a 3x3 convolution, on the paper's layers: how long a training step takes.

    Forward and both gradients, in a loop over steps as in an inner loop. Five tasks run side by
    side under `vmap`, and in the last column one after another, as the library runs them on a CPU.
    A multiple above 1 is slower than the library's own formulation.
    """
    rounds, sizes = (2, LAYERS[3:4]) if quick else (5, LAYERS)
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    others = [native, canonical, shifted_slices, nine_products]
    rows, data = [], {}
    for (size, fan_in, fan_out, stride, batch), tasks in itertools.product(sizes, (1, 5)):
        steps = 10 if size < 30 and not quick else 2
        lead = () if tasks == 1 else (tasks,)
        kernel, image = draw(*lead, 3, 3, fan_in, fan_out), draw(*lead, batch, size, size, fan_in)
        axis = jax.vmap if tasks > 1 else None
        programs = {
            way.__name__: training(way, stride, steps, axis=axis) for way in [ours, *others]
        }
        if tasks > 1:
            programs["in a loop"] = training(ours, stride, steps, axis=one_after_another)
        arms = {name: functools.partial(run, kernel, image) for name, run in programs.items()}
        measured = interleaved(arms, repeats=rounds, seconds=0.05)
        name = f"{size}x{size}x{fan_in}, stride {stride}, {tasks} task{'s' * (tasks > 1)}"
        data[name] = {"steps": steps, **measured}
        mine = measured.pop("ours")
        ratios = {name: paired_ratio(times, mine) for name, times in measured.items()}
        cells = [f"{ratios[way]:.2f}" if way in ratios else "" for way in _columns(others)]
        rows.append([name, f"{mine['median'] / steps:.2f}", *cells])
    return Table(
        "One step, forward and both gradients, in a scan; others as multiples of ours",
        ["layer", "ours, ms", *(name.replace("_", " ") for name in _columns(others))],
        rows,
        data,
    )


def _columns(others):
    return [*(way.__name__ for way in others), "in a loop"]


def pooling(quick: bool = False) -> Table:
    """2x2 max-pooling of the mini-ImageNet network's layers: how long a training step takes.

    Forward and gradient, in a loop over steps. Flax's is a window reduction; on a CPU its gradient
    is a scatter.
    """
    rounds, sizes = (2, (11,)) if quick else (7, (84, 42, 21, 11))
    pools = {"ours": rj.nn.max_pool, "flax": nn.max_pool}
    rows, data = [], {}
    for size, tasks in itertools.product(sizes, (1, 5)):
        steps = 10 if size < 30 and not quick else 2
        shape = (tasks, 10, size, size, 32)
        image = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        programs = {name: _pooled(pool, steps) for name, pool in pools.items()}
        arms = {name: functools.partial(run, image) for name, run in programs.items()}
        measured = interleaved(arms, repeats=rounds, seconds=0.05)
        name = f"{size}x{size}x32, {tasks} task{'s' * (tasks > 1)}"
        data[name] = {"steps": steps, **measured}
        ratio = paired_ratio(measured["flax"], measured["ours"])
        rows.append(
            [name, *(f"{measured[n]['median'] / steps:.2f}" for n in pools), f"{ratio:.2f}"]
        )
    return Table(
        "One step of 2x2 max-pooling, forward and gradient, in a scan",
        ["layer", "ours, ms", "flax, ms", "flax as a multiple of ours"],
        rows,
        data,
    )


def _pooled(pool, steps):
    def descend(image):
        loss = lambda image: jnp.sum(jnp.square(pool(image, (2, 2), (2, 2), "SAME")))
        step = lambda image, _: (image - 1e-3 * jax.grad(loss)(image), None)
        return lax.scan(step, image, length=steps)[0]

    return jax.jit(jax.vmap(descend))
