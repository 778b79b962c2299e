"""Mini-batches overlap as the names of the experiment's arms say."""

import jax
import numpy as np
import pytest

import reptile_jax as rj
from benchmarks.comparison import minibatch_overlap

pytestmark = pytest.mark.slow


def numbered_images():
    """Six classes of 20 images, each image its own grey level: its number."""
    images = np.arange(120, dtype=np.uint8).reshape(120, 1, 1, 1)
    starts = np.arange(6, dtype=np.int32) * 20
    return rj.tasks.ImageClasses(images, starts, np.full(6, 20, np.int32))


@pytest.mark.parametrize(
    ("name", "steps", "batch"),
    [
        *((name, 4, 25) for name in minibatch_overlap.OVERLAPS),
        ("FOMAML, shared tail, cycling", 8, 25),
        ("FOMAML, separate tail, cycling", 4, 100),
    ],
)
def test_mini_batches_overlap_as_their_name_says(name, steps, batch):
    drawing = minibatch_overlap.OVERLAPS[name]
    tasks = minibatch_overlap.tasks(numbered_images(), drawing, steps, batch)
    task = tasks.sample(jax.random.key(0))
    drawn = np.rint(np.asarray(task.support.inputs) * 255).astype(int).reshape(-1)
    support = drawn.reshape(task.support.targets.shape)
    if "separate" not in name:
        assert task.query is None
        assert support.shape == (steps, batch)
        assert len(set(drawn)) <= 100
        assert len(set(drawn[:100])) == 100 or "cycling" not in name
        fresh_tail = not set(support[-1]) & set(support[:-1].reshape(-1))
        assert fresh_tail == ("cycling" in name and (steps, batch) == (4, 25))
    else:
        tail = np.rint(np.asarray(task.query.inputs) * 255).astype(int).reshape(-1)
        assert len(tail) == len(set(tail)) == min(batch, 50)
        assert support.shape == (steps - 1, min(batch, 100 - len(tail)))
        assert not set(tail) & set(drawn)
