"""Formulations of a convolution, forward and backward inside a scan, as the inner loop has them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import measure
from reptile_jax import convolution

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
    return convolution.conv_general_dilated(
        image, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUT
    )


def _views(image, stride):
    pads = lax.padtype_to_pads(image.shape[1:3], (3, 3), (stride, stride), "SAME")
    image = jnp.pad(image, ((0, 0), *pads, (0, 0)))
    out = (image.shape[1] - 3) // stride + 1
    stop = (out - 1) * stride + 1
    return [
        image[:, i : i + stop : stride, j : j + stop : stride]
        for i, j in itertools.product(range(3), repeat=2)
    ]


def _training(formulation, stride, steps, tasks):
    """`steps` of gradient descent on a kernel, with the image's gradient taken as well."""

    def descend(kernel, image):
        def step(carry, _):
            kernel, image = carry
            loss = lambda kernel, image: jnp.sum(formulation(image, kernel, stride) ** 2)
            to_kernel, to_image = jax.grad(loss, (0, 1))(kernel, image)
            return (kernel - 1e-9 * to_kernel, image - 1e-9 * to_image), None

        return lax.scan(step, (kernel, image), length=steps)[0]

    return jax.jit(descend if tasks == 1 else jax.vmap(descend))


def formulations(quick: bool = False) -> None:
    """Races them on the paper's layers, for one task and for five under vmap."""
    steps, rounds = (2, 2) if quick else (10, 7)
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    contenders = [ours, native, shifted_slices, nine_products]
    rows, data = [], {}
    for (size, fan_in, fan_out, stride, batch), tasks in itertools.product(LAYERS, (1, 5)):
        lead = () if tasks == 1 else (tasks,)
        kernel, image = draw(*lead, 3, 3, fan_in, fan_out), draw(*lead, batch, size, size, fan_in)
        arms = {}
        for contender in contenders:
            run = _training(contender, stride, steps, tasks)
            arms[contender.__name__] = lambda run=run, kernel=kernel, image=image: run(
                kernel, image
            )
        measured = measure.interleaved(arms, repeats=rounds, seconds=0.05)
        name = f"{size}x{size}x{fan_in}, stride {stride}, {tasks} task{'s' * (tasks > 1)}"
        data[name] = measured
        mine = measured["ours"]
        ratios = [measure.paired_ratio(measured[c.__name__], mine) for c in contenders[1:]]
        rows.append([name, f"{mine['median'] / steps:.2f}", *(f"{r:.2f}" for r in ratios)])
    measure.save(
        "convolutions",
        "One step, forward and both gradients, in a scan; others as multiples of ours",
        ["layer", "ours, ms", *(c.__name__.replace("_", " ") for c in contenders[1:])],
        rows,
        data,
    )
