"""Families of differential equations for a physics-informed network, drawn on the device.

u_t + a u u_x = ν u_xx for x in [-1, 1] and t in [0, horizon], with u(-1, t) = u(1, t) = 0: Burgers'
equation for a = 1, the heat equation for a = 0. A task is one equation. Its loss needs no solution:
it asks at random points whether a network obeys the equation (Raissi, Perdikaris & Karniadakis
2019). Both families have exact solutions to measure the network's error with.
"""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reptile_jax._types import Apply, Batch, Key, LossFn, Params, ScoreFn, Task
from reptile_jax._values import check_integers, check_number, check_range, check_same_shape

_QUADRATURE_POINTS = 256


class Conditions(NamedTuple):
    """What one inner step asks of u(x, t): a mini-batch of points `(x, t)`."""

    inside: jax.Array  # [points, 2], where the equation is asked for
    initial: Batch  # [initial points, 2], at t = 0, and u there [initial points, 1]
    boundary: jax.Array  # [2 * boundary points, 2], where u is zero
    viscosity: jax.Array  # [], ν
    advection: jax.Array  # [], a
    solution: Batch | None = None  # in a query set: a grid [grid points, 2], and u [grid points, 1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Equations:
    """A family of equations. Make one with `burgers` or `heat`."""

    viscosity: tuple[float, float] = dataclasses.field(metadata={"static": True})
    advects: bool = dataclasses.field(metadata={"static": True})
    waves: int = dataclasses.field(metadata={"static": True})
    horizon: float = dataclasses.field(metadata={"static": True})
    points: int = dataclasses.field(metadata={"static": True})
    initial_points: int = dataclasses.field(metadata={"static": True})
    boundary_points: int = dataclasses.field(metadata={"static": True})
    steps: int = dataclasses.field(metadata={"static": True})
    grid: tuple[int, int] = dataclasses.field(metadata={"static": True})

    def sample(self, key: Key) -> Task:
        """One equation: `Conditions`, led by `[steps]` in the support, with new points in each.

        The query set has points of its own, and the exact solution on a grid: for the loss alone,
        the compiler leaves the solution out.
        """
        low, high = self.viscosity
        numbers = 2 * self.points + self.initial_points + 2 * self.boundary_points
        # One call makes all of a task's random numbers: calls cost most of the time on a CPU.
        drawn = jax.random.uniform(key, (1 + self.waves + (self.steps + 1) * numbers,))
        viscosity = low + (high - low) * drawn[0]
        if self.advects:
            amplitudes = -jnp.ones(1)
        else:
            amplitudes = (2 * drawn[1 : 1 + self.waves] - 1) / jnp.arange(
                1, 1 + self.waves, dtype=float
            )
        by_step = drawn[1 + self.waves :].reshape(self.steps + 1, numbers)
        asked = jax.vmap(partial(self._conditions, viscosity, amplitudes))(by_step)
        support, query = (
            jax.tree.map(lambda leaf, part=part: leaf[part], asked) for part in (slice(-1), -1)
        )
        grid = self._grid()
        u = (_burgers if self.advects else _heat)(grid, viscosity, amplitudes)
        return Task(support, query._replace(solution=Batch(grid, u[:, None])))

    def _conditions(self, viscosity, amplitudes, drawn) -> Conditions:
        x, t, initial, ends = jnp.split(
            drawn, (self.points, 2 * self.points, 2 * self.points + self.initial_points)
        )
        initial = jnp.stack([2 * initial - 1, jnp.zeros_like(initial)], 1)
        sides = jnp.repeat(jnp.array([-1.0, 1.0]), self.boundary_points)
        return Conditions(
            inside=jnp.stack([2 * x - 1, self.horizon * t], 1),
            initial=Batch(initial, _heat(initial, 0.0, amplitudes)[:, None]),
            boundary=jnp.stack([sides, self.horizon * ends], 1),
            viscosity=viscosity,
            advection=jnp.asarray(float(self.advects)),
        )

    def _grid(self) -> jax.Array:
        """`[grid points, 2]`, x within t."""
        columns, rows = self.grid
        t, x = jnp.meshgrid(
            jnp.linspace(0, self.horizon, rows), jnp.linspace(-1, 1, columns), indexing="ij"
        )
        return jnp.stack([x.reshape(-1), t.reshape(-1)], 1)


def burgers(
    *,
    viscosity: tuple[float, float] = (0.005, 0.05),
    horizon: float = 0.5,
    points: int = 200,
    initial_points: int = 50,
    boundary_points: int = 20,
    steps: int = 20,
    grid: tuple[int, int] = (64, 16),
) -> Equations:
    """Burgers' equation u_t + u u_x = ν u_xx with u(x, 0) = -sin(πx); tasks differ in ν.

    The lower ν, the steeper the front that forms at x = 0 after t = 1/π. The defaults are those of
    opifex's example of meta-learning. The exact solution is that of Cole and Hopf.

    Args:
      viscosity: lowest and highest ν, drawn uniformly.
      horizon: the last t.
      points: at which an inner step asks for the equation.
      initial_points: at which it asks for the initial value.
      boundary_points: at which it asks for zero, on each side.
      steps: inner steps, each with new points.
      grid: the solution's points in x and t.

    Raises:
      TypeError: for numbers of points or steps that are not integers.
      ValueError: for numbers below 1, viscosities that are not in order and between 0.001 and 1,
        and a horizon that is not between 0.001 and 2.
    """
    sizes = (points, initial_points, boundary_points, steps)
    return _equations(viscosity, horizon, sizes, grid, advects=True, waves=0)


def heat(
    *,
    viscosity: tuple[float, float] = (0.05, 0.2),
    waves: int = 3,
    horizon: float = 0.5,
    points: int = 200,
    initial_points: int = 50,
    boundary_points: int = 20,
    steps: int = 20,
    grid: tuple[int, int] = (64, 16),
) -> Equations:
    """The heat equation u_t = ν u_xx with u(x, 0) = Σ a_k sin(kπx); tasks differ in ν and the a_k.

    The exact solution is Σ a_k exp(-k²π²νt) sin(kπx). Arguments and errors are those of `burgers`,
    and one more.

    Args:
      waves: how many sines; a_k is drawn uniformly from [-1/k, 1/k].
    """
    (waves,) = check_integers(waves=waves)
    sizes = (points, initial_points, boundary_points, steps)
    return _equations(viscosity, horizon, sizes, grid, advects=False, waves=waves)


def _equations(viscosity, horizon, sizes, grid, *, advects: bool, waves: int) -> Equations:
    names = ("points", "initial_points", "boundary_points", "steps")
    points, initial, boundary, steps = check_integers(**dict(zip(names, sizes, strict=True)))
    # Beyond these bounds the quadrature of Burgers' solution loses its precision.
    viscosity = check_range("viscosity", viscosity, least=1e-3, largest=1)
    horizon = check_number("horizon", horizon, least=1e-3, largest=2)
    if not isinstance(grid, tuple | list) or len(grid) != 2:
        raise ValueError(f"grid is two numbers of points, (in x, in t), got {grid!r:.80}.")
    columns, rows = check_integers(**{f"grid[{axis}]": size for axis, size in enumerate(grid)})
    sizes = points, initial, boundary, steps, (columns, rows)
    return Equations(viscosity, advects, waves, horizon, *sizes)


def residual_loss(apply: Apply) -> LossFn:
    """How far a network is from obeying its task's equation: a loss on `Conditions`.

    The mean square of the equation's residual, u_t + a u u_x - ν u_xx, plus those of the errors at
    t = 0 and at x = -1 and 1.

    Args:
      apply: `(params, points [batch, 2]) -> u [batch, 1]`, twice differentiable, each row by
        itself.

    Raises:
      ValueError: at tracing, for a network whose outputs are not `[batch, 1]`.
    """

    def loss_fn(params: Params, batch: Conditions) -> jax.Array:
        u, u_x, u_t, u_xx = derivatives(partial(apply, params), batch.inside)
        residual = u_t + batch.advection * u * u_x - batch.viscosity * u_xx
        edge = apply(params, jnp.concatenate([batch.initial.inputs, batch.boundary]))
        at_start, at_sides = jnp.split(edge, [len(batch.initial.inputs)])
        check_same_shape(at_start, batch.initial.targets)
        square = lambda error: jnp.mean(jnp.square(error))
        return square(residual) + square(at_start - batch.initial.targets) + square(at_sides)

    return loss_fn


def relative_error(apply: Apply) -> ScoreFn:
    """The relative L2 error on the grid of a task's exact solution: `|u - exact| / |exact|`.

    Arguments and errors are those of `residual_loss`.
    """

    def score_fn(params: Params, task: Task) -> jax.Array:
        points, exact = task.query.solution
        u = apply(params, points)
        check_same_shape(u, exact)
        return jnp.linalg.norm(u - exact) / jnp.linalg.norm(exact)

    return score_fn


def derivatives(u: Any, points: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """u, u_x, u_t and u_xx of a function of points `(x, t)`, each row by itself.

    In forward mode, all rows at once: every layer is applied to four arrays of the points' length.
    What the nested derivatives repeat, the compiler leaves out.
    """
    along = lambda axis: jnp.zeros_like(points).at[:, axis].set(1)
    in_x = lambda points: jax.jvp(u, (points,), (along(0),))
    (value, u_x), (_, u_xx) = jax.jvp(in_x, (points,), (along(0),))
    _, u_t = jax.jvp(u, (points,), (along(1),))
    return value, u_x, u_t, u_xx


def _heat(points: jax.Array, viscosity: Any, amplitudes: jax.Array) -> jax.Array:
    """`[points]`: the solution of the heat equation; at t = 0 both families' initial value."""
    x, t = points[:, :1], points[:, 1:]
    waves = math.pi * jnp.arange(1, 1 + len(amplitudes), dtype=float)[None]
    decay = jnp.exp(-viscosity * jnp.square(waves) * t)
    return jnp.sum(amplitudes[None] * decay * jnp.sin(waves * x), 1)


def _burgers(points: jax.Array, viscosity: Any, amplitudes: jax.Array) -> jax.Array:
    """`[points]`: Cole and Hopf's solution of Burgers' equation for u(x, 0) = -sin(πx).

    The mean of -sin(π(x - y)) over y with weights exp(-y²/4νt - cos(π(x - y))/2πν) (Basdevant et
    al. 1986). Scaled by √4νt, y has weights that fall off as exp(-z²) beyond |u| √(t/4ν). So the
    trapezoidal rule up to there and some further converges as fast as for a Gaussian. The weights
    are a softmax, as their logarithms are of the size of 1/ν.
    """
    del amplitudes
    x, t = points[:, :1], points[:, 1:]
    reach = jnp.sqrt(t / (4 * viscosity)) + 6
    z = reach * jnp.linspace(-1, 1, _QUADRATURE_POINTS)[None]
    start = x - jnp.sqrt(4 * viscosity * t) * z
    logits = -jnp.square(z) - jnp.cos(math.pi * start) / (2 * math.pi * viscosity)
    return -jnp.sum(jax.nn.softmax(logits) * jnp.sin(math.pi * start), 1)
