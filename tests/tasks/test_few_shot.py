"""Few-shot episodes: what is drawn, how evenly, and what a score gets to see."""

import collections
import functools
import itertools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from scipy.special import chdtri

import reptile_jax as rj
from reptile_jax import Batch, Task
from reptile_jax.nn import cross_entropy
from reptile_jax.tasks import (
    Classes,
    Episode,
    ImageClasses,
    accuracy,
    draw_distinct,
    few_shot,
    group_by_class,
    query_logits,
)
from tests.nonsense import answered, fuzz, mostly

few_examples = hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)

COUNTS = (8, 5, 7, 13, 8, 11)
SIZES = {"ways": 4, "shots": 3, "query_shots": 2, "steps": 5, "batch_size": 5}


def made_up(counts=COUNTS):
    """Images `[1, 1, 2]` that say what they are: pixels (51 · class, image of the class).

    The classes lie in the array back to front, with an image of no class between them.
    """
    images, starts = [], {}
    for name in reversed(range(len(counts))):
        images.append((7, 77))
        starts[name] = len(images)
        images += [(51 * name, number) for number in range(counts[name])]
    return ImageClasses(
        np.array(images, np.uint8).reshape(-1, 1, 1, 2),
        np.array([starts[name] for name in range(len(counts))], np.int32),
        np.array(counts, np.int32),
    )


def identities(inputs):
    """`[..., 2]`: class and number of made-up images `[..., 1, 1, 2]` as the tasks have them."""
    assert inputs.dtype == jnp.float32
    pixels = np.asarray(inputs, np.float64)[..., 0, 0, :] * 255
    np.testing.assert_allclose(pixels, np.rint(pixels), atol=1e-4)
    return np.rint(pixels).astype(int) // [51, 1]


def assert_equally_likely(counts):
    """Pearson's chi-square, whose threshold a right sampler passes in all but 1 of 10,000 keys.

    `counts` of independent draws, `[outcomes]`; or a list of such, for several samplers together.
    """
    statistic, freedom = 0.0, 0
    for count in counts if isinstance(counts, list) else [counts]:
        expected = count.sum() / len(count)
        assert expected >= 20
        statistic += ((count - expected) ** 2 / expected).sum()
        freedom += len(count) - 1
    assert statistic < chdtri(freedom, 1e-4), (statistic, freedom)


traces = []


@jax.jit
def episode(distribution, key):
    traces.append(distribution)
    return distribution.sample(key)


episodes = jax.jit(lambda distribution, keys: jax.lax.map(distribution.sample, keys))


@pytest.fixture(scope="module")
def distribution():
    return few_shot(made_up(), **SIZES)


@pytest.fixture(scope="module")
def afresh():
    """An episode whose mini-batches are drawn with replacement."""
    distribution = few_shot(
        made_up(), ways=2, shots=3, steps=40, batch_size=4, query_shots=1, replace=True
    )
    return jax.device_get(episode(distribution, jax.random.key(1)))


@pytest.fixture(scope="module")
def many(distribution):
    """8,000 episodes."""
    return jax.device_get(episodes(distribution, jax.random.split(jax.random.key(0), 8000)))


# ---------------------------------------------------------------------------- distinct integers


def shuffled(size, targets):
    """The first places of 0 ... size - 1 after the swaps of each place with its target."""
    array = np.arange(size)
    for place, target in enumerate(targets):
        array[[place, target]] = array[[target, place]]
    return array[: len(targets)]


@functools.partial(jax.jit, static_argnums=2)
def targets_and_drawn(key, size, number):
    targets = jax.random.randint(key, (number,), jnp.arange(number), size)
    return targets, draw_distinct(key, size, number)


@hypothesis.given(
    number=st.sampled_from([1, 4, 9]),
    extra=st.one_of(st.integers(0, 8), st.integers(0, 2000)),
    seed=st.integers(0, 2**31 - 1),
)
@few_examples
def test_distinct_integers_are_those_of_a_fisher_yates_shuffle(number, extra, seed):
    key, size = jax.random.key(seed), number + extra
    targets, drawn = map(np.asarray, targets_and_drawn(key, jnp.int32(size), number))
    assert drawn.dtype == np.int32
    assert len(set(drawn.tolist())) == number
    assert 0 <= drawn.min() <= drawn.max() < size
    np.testing.assert_array_equal(drawn, shuffled(size, targets))


def test_distinct_integers_of_sizes_too_large_for_an_array():
    keys = jax.random.split(jax.random.key(0), 1000)
    size = 2**31 - 1
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: draw_distinct(key, size, 5)))(keys))
    assert 0 <= drawn.min() < 0.01 * size
    assert 0.99 * size < drawn.max() < size
    assert all(len(set(row)) == 5 for row in drawn.tolist())


@pytest.mark.parametrize("size", [3, np.int32(3)])
def test_there_are_no_more_distinct_integers_than_integers(size):
    with pytest.raises(ValueError, match="number is at most size, got 5 distinct integers below 3"):
        draw_distinct(jax.random.key(0), size, 5)


def test_every_ordered_outcome_is_equally_likely():
    keys = jax.random.split(jax.random.key(0), 24_000)
    for size, number in ((4, 3), (4, 4), (6, 2)):
        one = lambda key, size=size, number=number: draw_distinct(key, size, number)
        rows = jax.jit(lambda keys, one=one: jax.lax.map(one, keys))(keys)
        counts = collections.Counter(map(tuple, np.asarray(rows).tolist()))
        outcomes = list(itertools.permutations(range(size), number))
        assert set(counts) <= set(outcomes)
        assert_equally_likely(np.array([counts[outcome] for outcome in outcomes]))


# -------------------------------------------------------------------------------------- episodes


def test_an_episode_has_distinct_classes_and_images(many):
    support = identities(many.query.support.inputs).reshape(-1, 4, 3, 2)
    query = identities(many.query.inputs).reshape(-1, 4, 2, 2)
    images = np.concatenate([support, query], 2)  # [episodes, ways, images, class and number]
    classes = images[..., 0]
    assert (classes == classes[..., :1]).all()
    assert (np.diff(np.sort(classes[..., 0], 1), axis=1) > 0).all()
    assert (images[..., 1] < np.array(COUNTS)[classes]).all()
    assert (np.diff(np.sort(images[..., 1], 2), axis=2) > 0).all()


def test_labels_are_the_positions_of_the_classes(many):
    for batch, shots in ((many.query.support, 3), (many.query, 2)):
        assert batch.targets.dtype == np.int32
        assert (batch.targets == np.repeat(np.arange(4), shots)).all()
    classes = identities(many.query.support.inputs)[:, ::3, 0]  # [episodes, ways]
    of_batches = identities(many.support.inputs)[..., 0]
    np.testing.assert_array_equal(
        np.take_along_axis(classes, many.support.targets.reshape(8000, -1), 1),
        of_batches.reshape(8000, -1),
    )
    assert many.support.targets.dtype == np.int32


def test_mini_batches_cycle_through_the_support_set(many):
    assert many.support.inputs.shape == (8000, 5, 5, 1, 1, 2)
    support = identities(many.query.support.inputs)[:20].tolist()
    in_a_row = identities(many.support.inputs)[:20].reshape(20, 25, 2).tolist()
    for images, order in zip(support, in_a_row, strict=True):
        assert sorted(order[:12]) == sorted(order[12:24]) == sorted(images)
        assert order[24] in images
    assert any(order[:12] != order[12:24] for order in in_a_row)
    assert any(order[:12] != images for images, order in zip(support, in_a_row, strict=True))


def test_with_replacement_every_batch_is_drawn_afresh(afresh):
    images = set(map(tuple, identities(afresh.query.support.inputs).tolist()))
    drawn = identities(afresh.support.inputs)
    assert drawn.shape == (40, 4, 2)
    batches = [set(map(tuple, batch)) for batch in drawn.tolist()]
    assert all(len(batch) == 4 and batch <= images for batch in batches)
    passes = drawn.reshape(-1, 2)[:156].reshape(26, 6, 2).tolist()
    assert any(len(set(map(tuple, one))) < 6 for one in passes)
    classes = identities(afresh.query.support.inputs)[::3, 0]
    np.testing.assert_array_equal(classes[afresh.support.targets], drawn[..., 0])


def test_balanced_mini_batches_cycle_through_each_class_by_itself():
    sizes = {**SIZES, "batch_size": 8, "query_shots": 0}  # two of each class, of three shots
    balanced = few_shot(made_up(), **sizes, balanced=True)
    batches = jax.device_get(episodes(balanced, jax.random.split(jax.random.key(0), 2000))).support
    assert (batches.targets == np.arange(4).repeat(2)).all()
    images = identities(batches.inputs).reshape(2000, 5, 4, 2, 2)
    in_a_row = images.swapaxes(1, 2).reshape(2000, 4, 10, 2)  # [..., ways, of each class, 2]
    classes, numbers = in_a_row[..., 0], in_a_row[..., 1]
    assert (classes == classes[..., :1]).all()
    assert (np.diff(np.sort(classes[..., 0])) > 0).all()
    passes = numbers[..., :9].reshape(2000, 4, 3, 3)
    assert (np.diff(np.sort(passes)) > 0).all()
    assert (np.sort(passes) == np.sort(passes[:, :, :1])).all()
    # The place of the first image of a class in its second pass: passes are shuffled independently,
    # and so are the classes.
    places = (passes[:, :, 1] == passes[:, :, 0, :1]).argmax(-1)
    for one, other in itertools.combinations(range(4), 2):
        assert_equally_likely(np.bincount(3 * places[:, one] + places[:, other], minlength=9))


def test_balanced_mini_batches_drawn_afresh():
    sizes = {**SIZES, "batch_size": 8, "steps": 1000, "query_shots": 0}
    balanced = few_shot(made_up(), **sizes, balanced=True, replace=True)
    batches = jax.device_get(episode(balanced, jax.random.key(1))).support
    assert (batches.targets == np.arange(4).repeat(2)).all()
    numbers = identities(batches.inputs)[..., 1].reshape(1000, 4, 2)
    for way in range(4):
        shots = np.unique(numbers[:, way])
        pairs = np.searchsorted(shots, numbers[:, way]) @ [3, 1]
        counts = np.bincount(pairs, minlength=9)
        assert (counts[[0, 4, 8]] == 0).all()  # no image twice in a batch
        assert_equally_likely(counts[[1, 2, 3, 5, 6, 7]])


def test_images_are_scaled_from_0_to_1(many):
    inputs = many.query.inputs
    assert inputs.dtype == np.float32
    assert inputs.min() == 0.0
    assert inputs.max() == 1.0
    np.testing.assert_allclose(np.unique(inputs[..., 0]), np.arange(6) / 5, rtol=1e-6)


def test_every_class_is_equally_likely_at_every_position(many):
    classes = identities(many.query.support.inputs)[:, ::3, 0]
    for position in range(4):
        assert_equally_likely(np.bincount(classes[:, position], minlength=6))


@pytest.mark.parametrize("position", ["first support", "last support", "last query"])
def test_every_image_of_a_class_is_equally_likely(many, position):
    batch = many.query if position == "last query" else many.query.support
    shot = 0 if position == "first support" else -1
    images = identities(batch.inputs).reshape(8000, 4, -1, 2)[:, :, shot]
    assert_equally_likely(
        [
            np.bincount(images[images[..., 0] == name][:, 1], minlength=count)
            for name, count in enumerate(COUNTS)
        ]
    )


def test_what_is_drawn_of_one_class_tells_nothing_of_another(many):
    firsts = identities(many.query.support.inputs)[:, ::3]  # [episodes, ways, class and number]
    # Classes 0 and 4 have 8 images each: from the same bits the same image would be drawn.
    both = firsts[(firsts[..., 0] == 0).any(1) & (firsts[..., 0] == 4).any(1)]
    one, other = (both[both[..., 0] == name][:, 1] for name in (0, 4))
    assert_equally_likely(np.bincount(8 * one + other, minlength=64))


def test_the_same_key_gives_the_same_episode_however_it_is_run(distribution, many):
    keys = jax.random.split(jax.random.key(0), 8000)[:8]  # `many` is from a `lax.map`
    expected = [np.asarray(leaf)[:8] for leaf in jax.tree.leaves(many)]
    tasks = [jax.tree.leaves(episode(distribution, key)) for key in keys]
    one_by_one = [np.stack(leaves) for leaves in zip(*tasks, strict=True)]
    mesh = jax.make_mesh((8,), ("tasks",), axis_types=(jax.sharding.AxisType.Auto,))
    over_devices = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("tasks"))
    spread = jax.jit(jax.vmap(distribution.sample))(jax.device_put(keys, over_devices))
    assert len(spread.support.inputs.sharding.device_set) == 8
    for a, b, c in zip(expected, one_by_one, jax.tree.leaves(spread), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert (expected[0][0] != expected[0][1]).any()


def test_all_classes_and_all_images_can_be_drawn_and_no_query_set_be_asked_for():
    distribution = few_shot(made_up((3, 3, 4)), ways=3, shots=3, steps=1, batch_size=9)
    tasks = episodes(distribution, jax.random.split(jax.random.key(0), 100))
    assert tasks.query is None
    for images in identities(tasks.support.inputs)[:, 0].tolist():
        drawn = {name: {number for c, number in images if c == name} for name in range(3)}
        assert drawn[0] == drawn[1] == {0, 1, 2}
        assert len(drawn[2]) == 3


def sorted_lengths(function, *arguments):
    """The lengths of the arrays that a function's compiled program sorts."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    lines = [line for line in text.splitlines() if " sort(" in line]
    return {
        int(size)
        for line in lines
        for part in line.split(" sort(")[0].split("[")[1:]
        for size in part.split("]")[0].split(",")
    }


def test_the_class_list_is_not_sorted_to_draw_from_it():
    num_classes = 1234
    classes = ImageClasses(
        np.zeros((2 * num_classes, 1, 1, 1), np.uint8),
        np.arange(num_classes, dtype=np.int32) * 2,
        np.full(num_classes, 2, np.int32),
    )
    distribution = few_shot(classes, ways=5, shots=1, query_shots=1, steps=2, batch_size=5)
    key = jax.random.key(0)
    assert num_classes not in sorted_lengths(type(distribution).sample, distribution, key)
    choice = lambda key: jax.random.choice(key, num_classes, (5,), replace=False)
    assert num_classes in sorted_lengths(choice, key)  # what is looked for would be found


def test_the_images_are_an_argument_and_not_a_part_of_the_program(distribution):
    other = few_shot(made_up()._replace(images=made_up().images + np.uint8(1)), **SIZES)
    key = jax.random.key(0)
    a = episode(distribution, key)
    before = len(traces)
    b = episode(other, key)
    assert len(traces) == before
    difference = (np.asarray(b.support.inputs) - a.support.inputs) * 255 % 256
    np.testing.assert_allclose(difference, 1, atol=1e-3)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(distribution))


# ---------------------------------------------------------------------------- examples of any kind


def of_any_kind(number=30):
    """Examples that say in each of their arrays which they are."""
    each = np.arange(number)
    return {
        "signal": np.float32(each)[:, None, None] + np.linspace(0, 0.5, 8, dtype=np.float32)[None],
        "tokens": [each[:, None] * np.ones(3, np.int32), (each % 2).astype(bool)],
        "depth": (each + 1000).astype(np.uint16)[:, None, None],
        "picture": each.astype(np.uint8)[:, None],
        "count": each.astype(np.uint8),
        "half": jnp.asarray(each, jnp.bfloat16),
        "key": jax.random.split(jax.random.key(0), number),
    }


def test_examples_of_any_kind_stay_as_they_are_but_for_pictures():
    classes = Classes(of_any_kind(), np.array([0, 10, 20]), np.array([10, 10, 10]))
    sizes = {"ways": 3, "shots": 2, "query_shots": 1, "steps": 2, "batch_size": 4}
    task = episode(few_shot(classes, **sizes), jax.random.key(0))
    for batch in (task.support, task.query, task.query.support):
        index = np.asarray(batch.inputs["depth"])[..., 0, 0].astype(int) - 1000
        expected = jax.tree.map(lambda leaf, at=index: leaf[at], of_any_kind())
        picture = np.float32(expected.pop("picture")) / 255
        inputs = dict(batch.inputs)
        np.testing.assert_allclose(inputs.pop("picture"), picture, rtol=1e-6)
        data = lambda tree: {**tree, "key": jax.random.key_data(tree["key"])}
        expected, inputs = data(expected), data(inputs)
        for leaf, like in zip(jax.tree.leaves(inputs), jax.tree.leaves(expected), strict=True):
            assert leaf.dtype == jnp.asarray(like).dtype
            np.testing.assert_array_equal(leaf, like)
    assert sorted(index // 10) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("names", [["b", "a", "c"], [7, -2, 3]])
def test_examples_are_grouped_by_their_labels(names):
    labels = np.array(names)[[0, 1, 1, 0, 2, 1, 0]]
    classes = group_by_class({"at": np.arange(7), "twice": jnp.arange(7) * 2}, labels)
    assert classes.starts.dtype == classes.counts.dtype == np.int32
    groups = {}
    for name, start, count in zip(sorted(names), classes.starts, classes.counts, strict=True):
        groups[name] = classes.examples["at"][start : start + count].tolist()
    assert groups == {names[0]: [0, 3, 6], names[1]: [1, 2, 5], names[2]: [4]}
    np.testing.assert_array_equal(classes.examples["twice"], classes.examples["at"] * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: group_by_class(np.zeros((3, 2)), [0, 1]), r"leading axis \[examples\]"),
        (lambda: group_by_class(np.zeros(3), np.eye(3)), r"labels are one for each example.*3, 3"),
        (lambda: Classes(np.array(["a"] * 4), np.array([0]), np.array([4])), "arrays of numbers"),
        (lambda: Classes(np.zeros(4), np.array([0.0]), np.array([4])), "of float64, int64"),
        (lambda: Classes(np.zeros(4), 0, np.array([4])), "Python's int"),
        (lambda: np.zeros((4, 2)), "got ndarray of"),
        (lambda: Classes([np.zeros(4), np.zeros(3)], np.array([0]), np.array([3])), "disagree"),
        (lambda: Classes(np.zeros(4), np.array([1]), np.array([4])), "outside the 4 examples"),
        (lambda: Classes(np.zeros(4), np.zeros(2, int), np.zeros(3, int)), "one for each class"),
    ],
)
def test_what_are_no_classes_is_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        few_shot(make(), ways=1, shots=1, steps=1, batch_size=1)


def of_sequences(params, inputs):
    """Logits of sequences `[batch, longest, 2]`, of which only the first `length` steps count."""
    real = jnp.arange(inputs["values"].shape[1])[None] < inputs["length"][:, None]
    hidden = jnp.where(real[..., None], jnp.tanh(inputs["values"] @ params["in"]), 0)
    return (hidden.sum(1) / inputs["length"][:, None].astype(jnp.float32)) @ params["out"]


@pytest.mark.slow
def test_the_padding_of_sequences_leaves_no_trace():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 5)
    sequences = [rng.normal(label - 2.5, 0.5, (rng.integers(3, 9), 2)) for label in labels]
    params = {"in": rng.normal(size=(2, 8)), "out": np.zeros((8, 3))}
    params = jax.tree.map(np.float32, params)
    sizes = {"ways": 3, "shots": 3, "query_shots": 2, "steps": 30, "batch_size": 9}
    ended = []
    for longest in (9, 14):
        values = np.full((30, longest, 2), 99, np.float32)
        for row, sequence in zip(values, sequences, strict=True):
            row[: len(sequence)] = sequence
        inputs = {"values": values, "length": np.array([len(s) for s in sequences])}
        task = episode(few_shot(group_by_class(inputs, labels), **sizes), jax.random.key(1))
        loss = cross_entropy(of_sequences)
        adapted = rj.inner_loop(loss, optax.sgd(1.0), params, task.support)
        scores = accuracy(of_sequences)(adapted.params, task)
        assert scores["transductive"] == scores["non-transductive"] > 0.6
        ended.append((adapted, scores))
    chex.assert_trees_all_close(*ended, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ways": 7}, "ways=7, but there are only 6 classes"),
        (
            {"shots": 4},
            "shots=4 and query_shots=2 need 6 examples of each class, but class 1 has 5",
        ),
        ({"ways": 0}, "ways is at least 1, got 0"),
        ({"shots": 0}, "shots is at least 1, got 0"),
        ({"steps": 0}, "steps is at least 1, got 0"),
        ({"batch_size": 0}, "batch_size is at least 1, got 0"),
        ({"query_shots": -1}, "query_shots is at least 0, got -1"),
        (
            {"replace": True, "batch_size": 13},
            "with replace, a batch of 13 is drawn from 12 support examples: lower batch_size",
        ),
        (
            {"balanced": True},
            "batches of 5 cannot contain 4 classes equally often: make batch_size a",
        ),
    ],
)
def test_bad_sizes_are_named(changes, message):
    for classes in (made_up(), jax.tree.map(jnp.asarray, made_up())):
        with pytest.raises(ValueError, match=message):
            few_shot(classes, **{**SIZES, **changes})


def test_the_largest_sizes_are_allowed():
    few_shot(made_up(), **{**SIZES, "ways": 6, "shots": 5, "query_shots": 0})
    few_shot(made_up(), **{**SIZES, "replace": True, "batch_size": 12})
    few_shot(made_up(), **{**SIZES, "batch_size": 13})


CLASSES = ImageClasses(np.zeros((12, 4, 4, 1), np.uint8), np.array([0, 4, 8]), np.array([4, 4, 4]))


@fuzz
@hypothesis.given(
    st.sampled_from([None, "images", "starts", "counts"]),
    st.sampled_from([None, np.zeros((12, 4)), np.array([0, 4]), np.array([9, -9, 9]), [0, 4, 8]]),
    mostly(ways=2, shots=1, steps=2, batch_size=2, query_shots=1),
)
def test_episodes_of_anything(field, value, arguments):
    with answered():
        classes = CLASSES._replace(**{field: value}) if field else CLASSES
        jax.eval_shape(few_shot(classes, **arguments).sample, jax.random.key(0))


# ---------------------------------------------------------------------------------------- scores


def centred(params, images):
    """Class 0 is what is above the batch's mean, class 1 what is below it."""
    x = images[:, 0]
    x = params * (x - x.mean())
    return jnp.stack([x, -x], -1)


# Batch means: the queries' 17/3; the support set's 4, with one query after the other 11/3, 13/3 and
# 17/3; of all together 5.
SUPPORT = jnp.array([[0.0], [8.0]])
QUERY = jnp.array([[3.0], [5.0], [9.0]])


@pytest.mark.parametrize("transductive", [True, False])
def test_logits_of_inputs_of_several_arrays(transductive):
    both = lambda inputs: {"half": inputs / 2, "rest": [inputs / 4, inputs / 4]}
    join = lambda params, i: centred(params, i["half"] + sum(i["rest"]))
    given = jnp.float32(3), both(SUPPORT), both(QUERY)
    logits = query_logits(join, *given, transductive=transductive)
    expected = query_logits(centred, jnp.float32(3), SUPPORT, QUERY, transductive=transductive)
    np.testing.assert_allclose(logits, expected, rtol=1e-6)


def test_transductive_logits_see_all_queries_and_nothing_else():
    logits = query_logits(centred, jnp.float32(3), SUPPORT, QUERY, transductive=True)
    np.testing.assert_allclose(logits, [[-8, 8], [-2, 2], [10, -10]], rtol=1e-6)


def test_non_transductive_logits_see_one_query_and_the_support_set():
    logits = query_logits(centred, jnp.float32(3), SUPPORT, QUERY, transductive=False)
    np.testing.assert_allclose(logits, [[-2, 2], [2, -2], [10, -10]], rtol=1e-6)
    for at in range(3):
        alone = query_logits(
            centred, jnp.float32(3), SUPPORT, QUERY[at : at + 1], transductive=False
        )
        np.testing.assert_allclose(alone, logits[at : at + 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "transductive", "inductive"),
    [([1, 0, 0], 2, 3), ([1, 1, 1], 2, 1), ([0, 1, 1], 1, 0), ([1, 1, 0], 3, 2)],
)
def test_accuracy_is_the_share_of_right_answers(labels, transductive, inductive):
    support, query = Batch(SUPPORT, jnp.array([1, 0])), Batch(QUERY, jnp.array(labels))
    task = Task(Batch(SUPPORT[None], jnp.array([[1, 0]])), Episode(*query, support))
    scores = accuracy(centred)(jnp.float32(1), task)
    assert scores["transductive"].dtype == scores["non-transductive"].dtype == jnp.float32
    np.testing.assert_allclose(scores["transductive"], transductive / 3, rtol=1e-6)
    np.testing.assert_allclose(scores["non-transductive"], inductive / 3, rtol=1e-6)


def test_accuracy_without_a_query_set_says_what_to_do():
    task = Task(Batch(SUPPORT[None], jnp.array([[1, 0]])))
    with pytest.raises(ValueError, match=r"accuracy needs queries: .*query_shots=1"):
        accuracy(centred)(jnp.float32(1), task)


def test_a_linear_model_learns_the_classes_of_an_episode(afresh):
    def apply(params, images):
        brightness = images[:, 0, 0, :1]
        return (brightness - brightness.mean()) @ params

    optimizer, params = optax.sgd(9.0), jnp.zeros((1, 2))
    adapted = rj.inner_loop(cross_entropy(apply), optimizer, params, afresh.support).params
    for start, share in ((params, 0.5), (adapted, 1.0)):
        scores = accuracy(apply)(start, afresh)
        assert scores == {"transductive": share, "non-transductive": share}
