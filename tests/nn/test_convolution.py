"""The convolution equals that of lax: values, gradients and gradients of gradients."""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from reptile_jax.nn import batch_norm, conv_general_dilated
from reptile_jax.nn._checks import LAYOUT
from tests.nn.derivatives import close, normal, second_order, value_and_gradients
from tests.nonsense import answered, fuzz, mostly

properties = partial(settings, derandomize=True, deadline=None, database=None)


PADDINGS = ("SAME", "VALID", "SAME_LOWER", [(1, 2), (0, 3)], [(-1, 0), (2, -2)])


@st.composite
def convolutions(draw):
    groups = draw(st.sampled_from((1, 1, 2)))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    static = {
        "window_strides": draw(st.tuples(st.integers(1, 3), st.integers(1, 4))),
        "padding": draw(st.sampled_from(PADDINGS)),
        "lhs_dilation": (1, 1),
        "rhs_dilation": dilation,
        "feature_group_count": groups,
    }
    image = draw(st.tuples(st.integers(4, 9), st.integers(4, 9)))
    shapes = (2, *image, 2 * groups), (*kernel, 2, draw(st.integers(1, 3)) * groups)
    return static, shapes


@properties(max_examples=15)
@given(case=convolutions(), seed=st.integers(0, 99))
def test_a_convolution_and_its_gradients_equal_those_of_lax(case, seed):
    static, (image, kernel) = case
    with jax.enable_x64(True):
        args = normal(seed, *image), normal(seed + 1, *kernel)
        ours = partial(conv_general_dilated, **static, dimension_numbers=LAYOUT)
        theirs = partial(lax.conv_general_dilated, **static, dimension_numbers=LAYOUT)
        close(value_and_gradients(ours, *args), value_and_gradients(theirs, *args))


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (0, 4)])
def test_a_kernel_larger_than_the_image(size):
    with jax.enable_x64(True):
        args = normal(0, 2, *size, 3), normal(1, 3, 3, 3, 2)
        for padding, stride in itertools.product(("SAME", "VALID"), (1, 2)):
            static = dict(window_strides=(stride, stride), padding=padding)
            ours = partial(conv_general_dilated, **static, dimension_numbers=LAYOUT)
            theirs = partial(lax.conv_general_dilated, **static, dimension_numbers=LAYOUT)
            close(value_and_gradients(ours, *args), value_and_gradients(theirs, *args))


def test_gradients_of_gradients_equal_those_of_lax():
    static = dict(window_strides=(2, 1), padding="SAME", dimension_numbers=LAYOUT)
    with jax.enable_x64(True):
        args = normal(0, 2, 5, 6, 2), normal(1, 3, 3, 2, 3)
        expected = second_order(partial(lax.conv_general_dilated, **static), *args)
        close(second_order(partial(conv_general_dilated, **static), *args), expected)


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_weights_of_many_tasks_under_vmap(axes):
    static = dict(window_strides=(2, 2), padding="SAME", dimension_numbers=LAYOUT)
    with jax.enable_x64(True):
        shapes = (2, 5, 6, 2), (3, 3, 2, 3)
        args = [
            normal(seed, *([4] if axis == 0 else []), *shape)
            for seed, (axis, shape) in enumerate(zip(axes, shapes, strict=True))
        ]
        ours = partial(value_and_gradients, partial(conv_general_dilated, **static))
        theirs = partial(value_and_gradients, partial(lax.conv_general_dilated, **static))
        one = [
            theirs(*(a if axis is None else a[task] for a, axis in zip(args, axes, strict=True)))
            for task in range(4)
        ]
        close(jax.vmap(ours, axes)(*args), jax.tree.map(lambda *leaves: jnp.stack(leaves), *one))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("preferred", [None, jnp.float32])
def test_dtypes_are_those_of_lax(dtype, preferred):
    args = normal(0, 2, 5, 6, 2, dtype=dtype), normal(1, 3, 3, 2, 3, dtype=dtype)
    static = dict(window_strides=(2, 2), padding="SAME", dimension_numbers=LAYOUT)
    static |= dict(preferred_element_type=preferred, precision=lax.Precision.HIGHEST)
    value, gradients = value_and_gradients(partial(conv_general_dilated, **static), *args)
    close(value, lax.conv_general_dilated(*args, **static), 0.05)
    assert [g.dtype for g in gradients] == [dtype, dtype]


NHWC, HWIO = (2, 5, 5, 4), (3, 3, 4, 6)


@pytest.mark.parametrize(
    ("error", "message", "shapes", "static"),
    [
        (NotImplementedError, r"only two-dimensional .*\(2, 5, 4\)", ((2, 5, 4), (3, 4, 6)), {}),
        (NotImplementedError, "lhs_dilation .* must be 1", (NHWC, HWIO), {"lhs_dilation": (2, 1)}),
        (NotImplementedError, "batch_group_count", (NHWC, HWIO), {"batch_group_count": 2}),
        (NotImplementedError, "out_sharding", (NHWC, HWIO), {"out_sharding": "tasks"}),
        (NotImplementedError, "lax's NCHW", (NHWC, (6, 5, 3, 3)), {"dimension_numbers": None}),
        (ValueError, "4 features do not fit", (NHWC, (3, 3, 3, 6)), {}),
        (ValueError, "in 4 groups", (NHWC, (3, 3, 1, 6)), {"feature_group_count": 4}),
    ],
)
def test_what_is_not_supported_says_so(error, message, shapes, static):
    args = [jnp.ones(shape) for shape in shapes]
    static = {"dimension_numbers": LAYOUT if len(shapes[0]) == 4 else None, **static}
    with pytest.raises(error, match=message):
        conv_general_dilated(*args, (1, 1), "SAME", **static)


def test_dtypes_that_differ_or_are_not_floating_are_errors():
    x, w = jnp.ones(NHWC), jnp.ones(HWIO)
    for a, b in ((x, w.astype(jnp.bfloat16)), (x.astype(int), w.astype(int))):
        with pytest.raises(TypeError, match="one floating dtype"):
            conv_general_dilated(a, b, (1, 1), "SAME", dimension_numbers=LAYOUT)


@pytest.mark.parametrize(
    ("batch", "options"),
    [
        ((3,), dict(strides=2)),
        ((), dict(padding="VALID", kernel_dilation=2)),
        ((2, 3), dict(padding="CIRCULAR")),
        ((3,), dict(padding=1, strides=(2, 1), feature_group_count=2)),
        ((2,), dict(padding=((1, 0), (2, 1)), dtype=jnp.bfloat16)),
    ],
)
def test_conv_layers_of_flax_give_the_same_outputs(batch, options):
    x = normal(0, *batch, 6, 7, 4, dtype=jnp.float32)
    theirs = nn.Conv(6, (3, 3), **options)
    ours = nn.Conv(6, (3, 3), **options, conv_general_dilated=conv_general_dilated)
    variables = theirs.init(jax.random.key(0), x)
    tolerance = 2e-2 if "dtype" in options else 1e-5
    close(ours.apply(variables, x), theirs.apply(variables, x), tolerance)
    theirs = nnx.Conv(4, 6, (3, 3), **options, rngs=nnx.Rngs(0))
    options = options | {"conv_general_dilated": conv_general_dilated}
    ours = nnx.Conv(4, 6, (3, 3), **options, rngs=nnx.Rngs(0))
    close(ours(x), theirs(x), tolerance)


def network_loss(convolve, params, images):
    """The paper's Omniglot network, without its head."""
    for kernel, scale, bias in params:
        images = convolve(images, kernel, (2, 2), "SAME", dimension_numbers=LAYOUT)
        images = jax.nn.relu(batch_norm(images, scale, bias))
    return jnp.square(images).mean()


def test_no_convolution_is_left_in_an_inner_loop():
    params = [(jnp.ones((3, 3, i, 64)), jnp.ones(64), jnp.ones(64)) for i in (1, 64, 64, 64)]

    def program(convolve):
        def step(params, images):
            gradients = jax.grad(partial(network_loss, convolve))(params, images)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), None

        return jax.jit(partial(lax.scan, step)).lower(params, jnp.ones((3, 10, 28, 28, 1)))

    ours = program(conv_general_dilated)
    compiled = ours.compile().as_text()
    assert " while(" in compiled
    assert " convolution(" not in compiled
    # How many convolutions of lax's a compiler leaves is its own affair; that we see them is not.
    assert "stablehlo.convolution" in program(lax.conv_general_dilated).as_text()
    assert "stablehlo.convolution" not in ours.as_text()


@fuzz
@given(
    mostly(
        lhs=jnp.ones((2, 5, 5, 2)),
        rhs=jnp.ones((3, 3, 2, 4)),
        window_strides=(2, 1),
        padding="SAME",
        rhs_dilation=(1, 1),
        lhs_dilation=None,
        feature_group_count=1,
        batch_group_count=1,
        dimension_numbers=LAYOUT,
        preferred_element_type=None,
    )
)
def test_a_convolution_of_anything(arguments):
    if all(hasattr(arguments[name], "ndim") for name in ("lhs", "rhs")):
        with answered():
            jax.eval_shape(lambda: conv_general_dilated(**arguments))
