"""Time to accuracy sets characters apart and times training alone."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import reptile_jax as rj
from benchmarks.speed import time_to_accuracy
from reptile_jax.app.config import FewShotConfig
from reptile_jax.app.experiments.few_shot import Learned

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("relaxed")]


def test_characters_are_set_apart_and_only_training_is_timed(capsys):
    images = np.random.default_rng(0).integers(0, 256, (48, 14, 14, 1)).astype(np.uint8)
    names = tuple(f"{c}{turn}" for c in "abcd" for turn in ("", "+90", "+180", "+270"))
    starts = np.arange(16, dtype=np.int32) * 3
    classes = rj.tasks.ImageClasses(images, starts, np.full(16, 3, np.int32))
    splits = time_to_accuracy.set_apart(rj.datasets.ImageSplits(classes, None, names, ()), 2)
    assert splits.train_names == names[:8]
    assert splits.test_names == ("c", "d")
    np.testing.assert_array_equal(splits.test.starts, starts[[8, 12]])
    config = FewShotConfig(
        ways=2, train_shots=2, inner_steps=1, meta_batch=1, meta_steps=2, eval_steps=1
    )
    apply = lambda params, images: images.reshape(images.shape[0], -1) @ params
    inner = optax.sgd(0.1)
    learner = rj.meta_learner(rj.reptile(rj.nn.cross_entropy(apply), inner), optax.sgd(1.0))
    first_state = lambda: learner.init(jnp.zeros((14 * 14, 2)))
    learned = Learned(SimpleNamespace(apply=apply), inner, learner, first_state)
    curve = time_to_accuracy.measured(config, learned, splits, every=1, num_tasks=2)
    assert [point.meta_steps for point in curve] == [0, 1, 2][: len(curve)]
    assert curve[0].seconds == 0.0 < curve[1].seconds
    assert all(0 <= point.accuracy <= 100 for point in curve)
    table = time_to_accuracy.tabulated("o15", config, 2, curve)
    assert len(table.rows) == len(time_to_accuracy.LEVELS) + 1
