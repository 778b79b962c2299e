"""What the compiler makes of the paper's networks: what speed rests on, without timing."""

import re

import jax
import numpy as np
import pytest

from reptile_jax import fewshot, presets
from reptile_jax.fewshot_problem import problem_of
from reptile_jax.train import meta_steps

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["o15", "m15"])
def compiled(request):
    """Two meta steps of a row of the paper, compiled as the command line compiles them."""
    config = presets.PAPER[request.param]
    channels = 1 if config.color == "grey" else 3
    images = np.zeros((10 * config.train_shots, config.size, config.size, channels), np.uint8)
    starts = np.arange(10, dtype=np.int32) * config.train_shots
    distribution = fewshot.few_shot(
        fewshot.ImageClasses(images, starts, np.full(10, config.train_shots, np.int32)),
        ways=config.ways,
        shots=config.train_shots,
        steps=config.inner_steps,
        batch_size=config.inner_batch,
    )
    with jax.numpy_dtype_promotion("standard"):
        problem = problem_of(config)
        state = jax.eval_shape(problem.first_state)
        lowered = meta_steps.lower(
            problem.learner,
            state,
            distribution,
            jax.random.key(0),
            num_steps=2,
            meta_batch=config.meta_batch,
        )
        return state, lowered.compile()


def test_no_convolution_is_left_in_the_loops(compiled):
    """In a loop on a CPU its gradients would miss the fast path: the step would be 10x slower."""
    _, program = compiled
    text = program.as_text()
    assert " dot(" in text or "__ynn" in text
    assert not re.search(r"\bconvolution\(", text)


def test_the_loops_are_those_of_the_algorithm(compiled):
    """Meta steps, tasks, inner steps and the draw of classes; the others are random numbers."""
    _, program = compiled
    loops = re.findall(r" while\(.*?op_name=\"([^\"]*)\"", program.as_text())
    calls = {"closed_call", "eval_jaxpr"}  # what a loop's body is called, by the version of jax
    own = {"jit(meta_steps)", "jit(meta_step)", "while", "body"} | calls
    assert len([loop for loop in loops if set(loop.split("/")) <= own]) == 4


def test_the_state_is_donated(compiled):
    state, program = compiled
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes >= size
