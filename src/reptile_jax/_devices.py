"""Many devices: the tasks of a meta-batch are divided over the axis "tasks" of a mesh.

Each part of the axis runs its own tasks and sums over them; one all-reduce per meta step adds up
the sums. Only an evaluation gathers, its scores. The state, the task distribution and what a meta
step reports are the same along this axis. Other axes of the mesh are the model's: arrays keep the
sharding over them that they come with, and the compiler divides the computation by it.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reptile_jax._state_checks import check_usable

AXIS = "tasks"

Tree = TypeVar("Tree")


def task_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, "tasks", over `devices`: by default all, of all processes."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def automatic(mesh: Mesh | None) -> Mesh | None:
    """The same mesh with automatic axes: `jax.make_mesh` makes explicit ones."""
    return mesh and Mesh(mesh.devices, mesh.axis_names)


def parts(mesh: Mesh | None) -> int:
    """How many parts the tasks are divided into."""
    return mesh.shape[AXIS] if mesh else 1


def as_arrays(tree: Tree) -> Tree:
    """The tree with JAX arrays, of the dtypes that its leaves have."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tree)


def owned(tree: Tree, mesh: Mesh | None) -> Tree:
    """Copies of the arrays, placed as in `replicate`, whose buffers may be donated.

    A donated buffer needs a single owner, and some optimisers keep the parameters in their state.
    """
    return replicate(jax.tree.map(jnp.copy, tree), mesh)


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """Puts arrays on every device of the mesh; without a mesh, leaves them where they are.

    An array that is divided over other axes of this mesh than "tasks" stays divided. Where a mesh
    spans processes, each of them gives the same values. Shapes, as of `jax.eval_shape`, are given
    that place as well, to compile for devices that are not there.

    Raises:
      ValueError: if the processes give different values.
    """
    if mesh is None:
        return tree
    mesh = _as_set(mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
        place = lambda leaf: jax.eval_shape(lambda: leaf).update(sharding=_place(leaf, mesh))
        return jax.tree.map(place, tree)
    if everywhere.is_fully_addressable:
        return jax.device_put(tree, jax.tree.map(lambda leaf: _place(leaf, mesh), tree))
    given: list[bytes] = []  # digests of the leaves of which every process has a copy

    def put(leaf):
        leaf = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
        if _is_tracer(leaf) or not getattr(leaf, "is_fully_addressable", True):
            return jax.device_put(leaf, _place(leaf, mesh))
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        value = np.asarray(leaf, order="C")
        digest = hashlib.blake2b(f"{value.dtype}{value.shape}".encode())
        digest.update(value.tobytes())
        given.append(digest.digest())
        return jax.make_array_from_callback(value.shape, everywhere, value.__getitem__)

    result = jax.tree.map(put, tree)
    if given:
        digest = np.frombuffer(hashlib.blake2b(b"".join(given)).digest(), np.uint8)
        digests = multihost_utils.process_allgather(digest)
        if (digests != digests[0]).any():
            raise ValueError(
                "the processes have different arrays: give each the same data, configuration and "
                "checkpoint, and run the same version in each."
            )
    return result


def _place(leaf: Any, mesh: Mesh) -> NamedSharding:
    """Where a leaf goes: divided as it is over other axes of the mesh, or on every device."""
    spec = PartitionSpec()
    sharding = None if _is_tracer(leaf) else getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
        is_here = dict(sharding.mesh.shape) == dict(mesh.shape)
        is_here = is_here and np.array_equal(sharding.mesh.devices, mesh.devices)
        if is_here and AXIS not in jax.tree.leaves(tuple(sharding.spec)):
            spec = sharding.spec
    return NamedSharding(mesh, spec)


def local_parts(mesh: Mesh) -> Mesh:
    """The parts of the axis "tasks" that are this process's, as a mesh.

    Raises:
      ValueError: if a part is divided over processes.
    """
    axis, here = mesh.axis_names.index(AXIS), jax.process_index()
    is_here = np.vectorize(lambda device: device.process_index == here, otypes=[bool])(mesh.devices)
    by_part = np.moveaxis(is_here, axis, 0).reshape(parts(mesh), -1)
    if not by_part.any() or (by_part.any(1) != by_part.all(1)).any():
        raise ValueError(
            'a task that is streamed needs a part of the mesh\'s axis "tasks" within its process, '
            f"but process {here} has {is_here.sum()} of the devices of {dict(mesh.shape)}: order "
            "the mesh's devices so that a process has whole copies of the model."
        )
    return Mesh(np.compress(by_part.all(1), mesh.devices, axis), mesh.axis_names)


def on_one_part(leaf: jax.Array) -> jax.Array:
    """An array of a mesh as the first of this process's parts of the axis "tasks" has it.

    It is not copied. Arrays that are on no mesh stay as they are.
    """
    sharding = None if _is_tracer(leaf) else leaf.sharding
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return leaf
    mesh = sharding.mesh
    if AXIS in mesh.axis_names:
        axis, mesh = mesh.axis_names.index(AXIS), local_parts(mesh)
        mesh = Mesh(mesh.devices.take([0], axis), mesh.axis_names)
    place = NamedSharding(Mesh(mesh.devices, mesh.axis_names), sharding.spec)
    data = {shard.device: shard.data for shard in leaf.addressable_shards}
    arrays = [data[device] for device in mesh.devices.flat]
    return jax.make_array_from_single_device_arrays(leaf.shape, place, arrays)


class Placement(NamedTuple):
    """How a tree's leaves are divided over the axes of the model; hashable."""

    treedef: Any
    shardings: tuple[NamedSharding, ...]


def placement(tree: Any, mesh: Mesh | None) -> Placement | None:
    """Where the leaves are; None where no axis is the model's, or the compiler traces."""
    if mesh is None or len(mesh.axis_names) == 1:  # most often: every step comes by here
        return None
    leaves, treedef = jax.tree.flatten(tree)
    if any(map(_is_tracer, leaves)):
        return None
    mesh = Mesh(mesh.devices, mesh.axis_names)
    return Placement(treedef, tuple(_place(leaf, mesh) for leaf in leaves))


def kept(tree: Tree, placed: Placement | None) -> Tree:
    """Inside `jit`: the tree, divided as that from which the placement is."""
    if placed is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, jax.tree.unflatten(*placed))


def jitted(step: Callable, mesh: Mesh | None, *, donate: bool) -> Callable:
    """The step of a learner, compiled, with an error in words for a state that is used up.

    On a mesh with axes of the model's, the state that it returns is divided as the one it takes.
    """

    @functools.cache  # for most states there is one
    def compiled(placed):
        def meta_step(state, tasks):
            state, info = step(state, tasks)
            return kept(state, placed), info

        return jax.jit(meta_step, donate_argnums=0 if donate else ())

    @functools.wraps(compiled(None))
    def checked(state, tasks):
        check_usable(state, donated=donate)
        return compiled(placement(state, mesh))(state, tasks)

    def lower(state, tasks):
        return compiled(placement(state, mesh)).lower(state, tasks)

    def trace(state, tasks):
        return compiled(placement(state, mesh)).trace(state, tasks)

    vars(checked).update(lower=lower, trace=trace)  # as a jitted function has
    return checked


def _is_tracer(leaf: Any) -> bool:
    return isinstance(leaf, jax.core.Tracer)


def _as_set(mesh: Mesh) -> Mesh:
    """The mesh, with the kind of axes that `jax.set_mesh` has set around the program, if it has.

    Raises:
      ValueError: if that is another mesh: arrays cannot belong to both; or if it has explicit axes
        of a model's.
    """
    around = jax.sharding.get_abstract_mesh()
    if around.empty:
        return mesh
    if dict(around.shape) != dict(mesh.shape):
        raise ValueError(
            f"jax.set_mesh has set a mesh of {dict(around.shape)}, but the tasks are divided over "
            f"one of {dict(mesh.shape)}: set the mesh that the learner has, or none."
        )
    if len(mesh.axis_names) > 1 and AxisType.Explicit in around.axis_types:
        raise ValueError(
            "the axes of a mesh that divides a model are automatic here: make it with "
            "jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto, ...))."
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=around.axis_types)


def in_auto_axes(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, for arrays that carry the axes of an explicit mesh in their types as well.

    Such a mesh is that of `jax.set_mesh`, or of an argument. Inside, the axes are automatic; what
    comes out is on all of the mesh's devices.
    """

    @functools.wraps(function)
    def call(*args, **kwargs):
        leaves, treedef = jax.tree.flatten((args, kwargs))
        arrays = {at: leaf for at, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}
        types = (jax.typeof(leaf) for leaf in arrays.values())
        meshes = [jax.sharding.get_abstract_mesh(), *(each.sharding.mesh for each in types)]
        explicit = [mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types]
        if not explicit:
            return function(*args, **kwargs)

        def inside(arrays):
            given = [arrays.get(at, leaf) for at, leaf in enumerate(leaves)]
            args, kwargs = jax.tree.unflatten(treedef, given)
            return function(*args, **kwargs)

        with jax.sharding.use_abstract_mesh(explicit[0]):
            return jax.sharding.auto_axes(inside, out_sharding=PartitionSpec())(arrays)

    return call


def repeat_last(tree: Tree, size: int) -> Tree:
    """Lengthens the first axis of every leaf to `size` by repeating its last entry."""
    pad = lambda leaf: leaf[jnp.minimum(jnp.arange(size), len(leaf) - 1)]
    return jax.tree.map(lambda leaf: pad(leaf) if len(leaf) < size else leaf, tree)


def over_devices(run: Callable[[Any, Any], Tree], mesh: Mesh) -> Callable[[Any, Any], Tree]:
    """`run(shared, tasks)` on each device, where `tasks` is its part of what is led by `[tasks]`.

    What `run` returns has to be the same on every device: `all_reduce` and `gather` make it so.
    """
    _as_set(mesh)
    # `check_vma` would prove that, but it also sums gradients with respect to what is shared over
    # the devices, in every inner step, and refuses the loops over zeros that losses may contain.
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        axis_names={AXIS},
        check_vma=False,
    )


def all_reduce(sums: Tree, reports: Any) -> tuple[Tree, Any]:
    """Brings together what the devices found: one all-reduce, which moves no leaf beforehand.

    Args:
      sums: floating-point leaves; they add up.
      reports: floating-point and boolean leaves led by the tasks of this device.

    Returns:
      The sums, and the reports led by the tasks of all devices.
    """
    sums, placed = jax.lax.psum((sums, jax.tree.map(_in_its_place, reports)), AXIS)
    join = lambda all_, leaf: all_.reshape(-1, *leaf.shape[1:]).astype(leaf.dtype)
    return sums, jax.tree.map(join, placed, reports)


def _in_its_place(leaf):
    """Zeros `[devices, ...]` but for this device's own entry."""
    values = leaf.astype(jnp.float32) if leaf.dtype == bool else leaf
    zeros = jnp.zeros((jax.lax.axis_size(AXIS), *values.shape), values.dtype)
    return zeros.at[jax.lax.axis_index(AXIS)].set(values)


def gather(tree: Tree) -> Tree:
    """Leaves led by the tasks of this device, from all devices, on every device."""
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True), tree)
