"""The transformer that fills several chips: here a small one, and the table of its memory."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from benchmarks.speed import targets, transformer

pytestmark = pytest.mark.usefixtures("relaxed")

SMALL = transformer.Sizes(
    layers=3, width=64, heads=4, words=128, tasks=2, steps=2, batch=2, length=16
)
V5E = targets.CHIPS["v5e"]


def test_the_sizes_are_those_of_the_parameters():
    leaves = jax.tree.leaves(transformer.shapes(SMALL))
    assert SMALL.parameters == sum(leaf.size for leaf in leaves)
    assert transformer.Sizes().parameters == pytest.approx(1e9, rel=0.03)


@pytest.mark.slow
def test_the_all_reduce_over_tasks_is_of_the_sums_of_one_chip():
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("tasks", "model"))
    compiled = transformer.lowered(SMALL, mesh).compile()
    # Norms are not divided; besides the sums there are losses, counts and weights.
    sums = transformer.memory(SMALL, 2)["sums"]
    found = transformer.bytes_over_tasks(compiled.as_text())
    assert sums < found < 1.05 * sums
    state = transformer.memory(SMALL, 2)["state"]
    assert state < compiled.memory_analysis().argument_size_in_bytes < 1.05 * state


def test_a_refusal_is_a_row():
    error = "RESOURCE_EXHAUSTED: temporaries (15.78G) exceeds available HBM (15.75G)."
    done = {"argument_bytes": 2**30, "temporary_bytes": 2**31, "bytes_over_tasks": 2**29}
    done |= {"seconds": 99.0, "seconds_of_a_step": 0.382}
    refused = transformer.Case(V5E, (1, 4))
    data = {
        refused.label: refused.about | {"error": error},
        "fits": transformer.Case(V5E, (8, 32)).about | done,
    }
    first, second = transformer.table(data).rows
    assert first[:2] == ["4 x v5e", "1 x 4"]
    assert first[8:] == ["refused: 15.78 of 15.75 besides the state", "", "", ""]
    assert second[8:] == ["3.00", "0.50", "99", "0.38"]
    assert float(second[7]) == pytest.approx(sum(map(float, second[3:7])), abs=0.02)
