"""What is wrong with an argument, a file or a configuration is said by the library itself.

Whatever is given, the answer is a result or an error raised here, before anything is compiled: none
comes from inside JAX, NumPy, Pillow, zipfile, csv or pickle.
"""

import contextlib
import dataclasses
import io
import os
import pickle
import traceback
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import reptile_jax as rj
from image_files import noise
from reptile_jax import (
    convolution,
    datasets,
    evaluate,
    fewshot,
    layers,
    mini_imagenet,
    omniglot,
    presets,
    runs,
)
from reptile_jax.sinusoids import sinusoids
from reptile_jax.train import train

KEY = jax.random.key(0)
LIBRARY = os.path.dirname(rj.__file__)
NONSENSE = st.sampled_from(
    [
        *(0, 1, -1, 2, 2.5, np.nan, np.inf, None, "3", True, 10**12, 2**31, np.int64(2)),
        *(np.zeros(2), jnp.zeros(3), KEY, [1], (1, 2), {}, "SAME", len),
    ]
)
fuzz = settings(derandomize=True, deadline=None, max_examples=40, database=None)


@contextlib.contextmanager
def answered():
    """Passes on a result, or an error raised by a statement of the library."""
    try:
        yield
    except (ValueError, TypeError, OSError, NotImplementedError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raised = last.line.startswith("raise") or isinstance(error, OSError)
        if not raised or not last.filename.startswith(LIBRARY) or not str(error):
            pytest.fail(f"{last}: {error}")


def mostly(**defaults):
    """Keyword arguments with nonsense in at most two of them."""
    return st.dictionaries(st.sampled_from(sorted(defaults)), NONSENSE, max_size=2).map(
        lambda nonsense: {**defaults, **nonsense}
    )


def loss_fn(params, batch):
    inputs, targets = batch
    difference = inputs.astype(jnp.float32) * params["w"].astype(jnp.float32).sum() - targets
    return jnp.mean(difference.astype(jnp.float32) ** 2)


SUPPORT, QUERY = (jnp.ones((3, 2, 4)), jnp.ones((3, 2, 4))), (jnp.ones((3, 4)), jnp.ones((3, 4)))
LEAVES = st.sampled_from(
    [jnp.ones((3, 2, 4), dtype) for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, bool)]
    + [jnp.ones(shape) for shape in ((3, 2, 0), (3, 0, 4), (0, 2, 4), (2, 2, 4), (3,), ())]
    + [jnp.full((3, 2, 4), jnp.nan)]
)
PARAMS = st.sampled_from(
    [{"w": jnp.ones(2, dtype)} for dtype in (jnp.float32, jnp.float16, jnp.int32, jnp.complex64)]
    + [{}, None, {"w": "x"}, {"w": np.array(["a"])}, {"w": np.ones(0, np.float32)}, 3]
)
LOSSES = st.sampled_from(
    [
        *(loss_fn, loss_fn, lambda p, b: None, lambda p, b: (loss_fn(p, b), 1)),
        *(lambda p, b: p["w"], lambda p, b: jnp.int32(3), None),
    ]
)
OPTIMIZERS = st.sampled_from(
    [optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.noisy_sgd(0.1, key=KEY), optax.sgd, None]
)
DRAWS = [
    rj.Draws(sinusoids(), jax.random.split(KEY, 3)),
    rj.Draws(sinusoids(), KEY),
    rj.Draws(sinusoids(), jnp.arange(3)),
    rj.Draws(None, jax.random.split(KEY, 3)),
]
TASKS = st.one_of(
    st.builds(lambda x, y: rj.Task((x, y), QUERY), LEAVES, LEAVES),
    st.builds(lambda weight: rj.Task(SUPPORT, QUERY, weight), LEAVES),
    st.sampled_from([rj.Task(SUPPORT), rj.Task(None), SUPPORT, None, *DRAWS]),
)
SIBLINGS = st.sampled_from(
    [rj.reptile, rj.fomaml, rj.maml, rj.foml, lambda f, o: rj.weighted(f, o, "ab")]
)


@fuzz
@given(
    SIBLINGS,
    LOSSES,
    OPTIMIZERS,
    OPTIMIZERS,
    PARAMS,
    TASKS,
    mostly(inner_state="averaged", tasks_at_once=2),
)
def test_a_meta_step_of_anything(sibling, loss_fn, inner, outer, params, tasks, options):
    with jax.numpy_dtype_promotion("standard"), answered():
        learner = rj.meta_learner(sibling(loss_fn, inner), outer, **options)
        state = learner.init(params)
        after, _ = jax.eval_shape(learner.step, state, tasks)
        assert jax.tree.structure(after) == jax.tree.structure(state)


@fuzz
@given(mostly(key=KEY, examples=jnp.ones((5, 2)), steps=2, batch_size=3))
def test_mini_batches_of_anything(arguments):
    with answered():
        jax.eval_shape(lambda: rj.minibatches(**arguments))


@fuzz
@given(mostly(amplitude=(0.1, 1), phase=(0, 1), inputs=(-1, 1), points=5, shots=5, steps=2))
def test_sine_waves_of_anything(arguments):
    with answered():
        assert jax.eval_shape(sinusoids(**arguments).sample, KEY).support.inputs.shape[1] == 10


CLASSES = fewshot.ImageClasses(
    np.zeros((12, 4, 4, 1), np.uint8), np.array([0, 4, 8]), np.array([4, 4, 4])
)


@fuzz
@given(
    st.sampled_from([None, "images", "starts", "counts"]),
    st.sampled_from([None, np.zeros((12, 4)), np.array([0, 4]), np.array([9, -9, 9]), [0, 4, 8]]),
    mostly(ways=2, shots=1, steps=2, batch_size=2, query_shots=1),
)
def test_episodes_of_anything(field, value, arguments):
    with answered():
        classes = CLASSES._replace(**{field: value}) if field else CLASSES
        jax.eval_shape(fewshot.few_shot(classes, **arguments).sample, KEY)


@fuzz
@given(mostly(key=KEY, until=0, meta_batch=1, steps_per_dispatch=1, learner=None, state=None))
def test_training_with_anything(arguments):
    learner = rj.meta_learner(rj.reptile(loss_fn, optax.sgd(0.1)), optax.sgd(0.1))
    arguments["learner"] = arguments["learner"] or learner
    if arguments["state"] is None:
        arguments["state"] = learner.init({"w": jnp.ones(2)})
    with answered():
        train(distribution=sinusoids(), **arguments)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"key": 0},
        {"num_tasks": 2.5},
        {"score_fn": None},
        {"report": 3},
        {"loss_fn": 3},
        {"optimizer": 0.1},
        {"params": {"w": 1}},
        {"distribution": None},
        {"opt_state": {"count": 3}},
    ],
)
def test_evaluating_with_nonsense(nonsense):
    arguments = {
        "loss_fn": loss_fn,
        "score_fn": lambda params, task: 0.0,
        "optimizer": optax.sgd(0.1),
        "params": {"w": jnp.ones(2)},
        "distribution": sinusoids(),
        "key": KEY,
        "num_tasks": 2,
    }
    with pytest.raises((TypeError, ValueError)) as caught:
        evaluate.evaluate(**arguments | nonsense)
    with answered():
        raise caught.value


IMAGES = jnp.ones((2, 5, 5, 2))


@fuzz
@given(
    mostly(
        lhs=IMAGES,
        rhs=jnp.ones((3, 3, 2, 4)),
        window_strides=(2, 1),
        padding="SAME",
        rhs_dilation=(1, 1),
        lhs_dilation=None,
        feature_group_count=1,
        batch_group_count=1,
        dimension_numbers=convolution.LAYOUT,
        preferred_element_type=None,
    )
)
def test_a_convolution_of_anything(arguments):
    if all(hasattr(arguments[name], "ndim") for name in ("lhs", "rhs")):
        with answered():
            jax.eval_shape(lambda: convolution.conv_general_dilated(**arguments))


@fuzz
@given(
    mostly(window_shape=(2, 2), strides=(2, 2), padding="SAME"),
    mostly(x=IMAGES, scale=jnp.ones(2), bias=jnp.ones(2), epsilon=1e-3),
)
def test_layers_of_anything(pool, norm):
    with answered():
        jax.eval_shape(lambda: layers.max_pool(IMAGES, **pool))
    with answered():
        jax.eval_shape(lambda: layers.batch_norm(**norm))


@settings(fuzz, max_examples=150)
@given(
    st.sampled_from([presets.Sinusoid, presets.FewShotImages]),
    st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(presets.FewShotImages)]),
        NONSENSE,
        min_size=1,
        max_size=3,
    ),
)
def test_a_configuration_of_anything(kind, values):
    names = {field.name for field in dataclasses.fields(kind)}
    config = kind(**{name: value for name, value in values.items() if name in names})
    with answered():
        presets.check(config)
        for field in dataclasses.fields(kind):
            if field.type in (int, float):
                assert 0 <= getattr(config, field.name) < 2**31


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{", '{"kind": []}', '{"kind": "sinusoid", "inner_rate": "x"}', "[" * 9999],
)
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        runs.load_config(tmp_path)


# Files.


@st.composite
def damaged(draw, contents):
    """One of `contents`, cut, with bytes changed, or left as it is."""
    data = bytearray(draw(st.sampled_from(contents)))
    how = draw(st.sampled_from(["cut", "change", "change", "insert", "leave"]))
    place = st.integers(0, len(data) - 1)
    if how == "cut":
        del data[draw(place) :]
    elif how == "insert":
        at = draw(place)
        data[at:at] = draw(st.binary(max_size=20))
    elif how == "change":
        for at in draw(st.lists(place, min_size=1, max_size=6)):
            data[at] = draw(st.integers(0, 255))
    return bytes(data)


def encoded(mode, kind, **options):
    file = io.BytesIO()
    Image.fromarray(noise(9, 7, 3)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def encoded_array(array, kind):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


MODES = [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("P", "GIF")]
MODES += [("CMYK", "JPEG"), ("RGB", "JPEG"), ("RGB", "BMP"), ("RGB", "WEBP"), ("LAB", "TIFF")]
FRAMES = [Image.fromarray(noise(9, 7, 3, seed=seed)) for seed in (1, 2)]
ENCODED = [
    *(encoded(*mode) for mode in MODES),
    *(encoded("RGB", kind, save_all=True, append_images=FRAMES) for kind in ("GIF", "PNG")),
    *(encoded_array(np.arange(63, dtype=t).reshape(9, 7), "TIFF") for t in ("u2", "i4", "f4")),
]


@settings(fuzz, max_examples=150)
@given(damaged(ENCODED), st.sampled_from(["rgb", "grey"]))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_image_of_anything(data, color):
    with answered():
        image = datasets.decode(io.BytesIO(data), "x", 5, color, "nearest")
        assert image.shape == (5, 5, {"rgb": 3, "grey": 1}[color])
        assert image.dtype == np.uint8


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 3), 0.5, np.float32), "floating-point numbers of no stated range"),
        (np.full((3, 3), 70_000, np.int32), "more than 16 bits"),
        (np.full((3, 3), -1, np.int32), "more than 16 bits"),
    ],
)
def test_pixels_without_a_meaning_are_refused(array, message):
    with pytest.raises(ValueError, match=f"cannot read the image x: .*{message}"):
        datasets.decode(io.BytesIO(encoded_array(array, "TIFF")), "x", 3, "grey", "nearest")


def omniglot_zip(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(4):
            member = f"{name}/{name}/character0{index // 2}/1_{index % 2}.png"
            archive.writestr(member, encoded("1", "PNG"))
    return file.getvalue()


def use_small_omniglot(monkeypatch):
    monkeypatch.setattr(omniglot, "_CLASSES", dict.fromkeys(omniglot._CLASSES, 2))
    monkeypatch.setattr(omniglot, "_DRAWINGS", 2)


def test_an_archive_of_anything(tmp_path, monkeypatch):
    use_small_omniglot(monkeypatch)
    (tmp_path / "images_background.zip").write_bytes(omniglot_zip("images_background"))
    evaluation = tmp_path / "images_evaluation.zip"

    @settings(fuzz, max_examples=100)
    @given(damaged([omniglot_zip("images_evaluation")]))
    def check(data):
        evaluation.write_bytes(data)
        with answered():
            splits = omniglot.load_omniglot(tmp_path, num_train=2, size=3, cache=False)
            assert splits.train.images.shape == (16, 3, 3, 1)

    check()


def test_a_member_that_unfolds_into_too_much_is_refused(tmp_path, monkeypatch):
    use_small_omniglot(monkeypatch)
    for name in omniglot._CLASSES:
        (tmp_path / f"{name}.zip").write_bytes(omniglot_zip(name))
    monkeypatch.setattr(omniglot, "_LARGEST_FILE", 10)
    with pytest.raises(ValueError, match=r"damaged at .*png.*larger than 10 bytes"):
        omniglot.load_omniglot(tmp_path, num_train=2, cache=False)


def pickles(content):
    return [pickle.dumps(content, protocol) for protocol in range(6)]


PICKLES = [
    *pickles({"image_data": noise(4, 3, 3, 3), "class_dict": {"a": [0, 1], "b": np.array([2, 3])}}),
    *pickles({"data": noise(4, 3, 3, 3), "labels": [0, 0, 1, 1], "catname2label": {"a": 0}}),
]
CONTENTS = st.sampled_from(
    [
        *(None, -1, 2**70, 1.5, "x", [0, 1], [[0], [1, 2]], ["a", "b"], np.zeros((2, 2))),
        *({"a": [0.5]}, {"a": [-1, 0]}, {"a": [2**70]}, {"a": np.array([["x"]])}),
        *({"a": 3}, {1: [0, 1], "1": [2, 3]}),
    ]
)


def load_small_mini_imagenet(folder):
    return mini_imagenet.load_mini_imagenet(
        folder, size=3, num_classes=(2, 2, 2), images_per_class=2
    )


def test_a_pickle_of_anything(tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / f"mini-imagenet-cache-{split}.pkl").write_bytes(PICKLES[2])

    @settings(fuzz, max_examples=150)
    @given(
        damaged(PICKLES)
        | st.builds(
            lambda *values: pickle.dumps(
                dict(zip(("image_data", "labels", "class_dict"), values, strict=True))
            ),
            *[CONTENTS] * 3,
        )
        | st.builds(
            lambda value: pickle.dumps({"data": noise(4, 3, 3, 3), "labels": value}), CONTENTS
        )
        | st.builds(lambda v: pickle.dumps({"data": noise(4, 3, 3, 3), "class_dict": v}), CONTENTS)
    )
    def check(data):
        (tmp_path / "mini-imagenet-cache-val.pkl").write_bytes(data)
        with answered():
            assert load_small_mini_imagenet(tmp_path).validation.images.shape == (4, 3, 3, 3)

    check()


class CraftedArray:
    """Its dtype says of itself that it holds no objects, and its bytes are pointers to nowhere."""

    class Dtype:
        def __reduce__(self):
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

    def __reduce__(self):
        make = np.zeros(0).__reduce__()[0]
        return make, (np.ndarray, (0,), b"b"), (1, (4,), self.Dtype(), False, b"A" * 32)


def test_arrays_of_pointers_are_refused(tmp_path):
    content = {"image_data": CraftedArray(), "class_dict": {}}
    for split in ("train", "val", "test"):
        (tmp_path / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="an array of O8, not of numbers or text"):
        load_small_mini_imagenet(tmp_path)


@pytest.mark.parametrize("dtype", ["<u2", ">i4", "<f8", "?", "<U3", "S2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, dtype, order):
    from reptile_jax.pickled import load_arrays

    array = np.asarray(np.arange(6).reshape(2, 3).astype(dtype), order=order)
    for protocol in range(6):
        path = tmp_path / "x.pkl"
        scalar = array.reshape(-1)[1]
        path.write_bytes(pickle.dumps({"a": {"b": array}, "c": scalar}, protocol))
        read = load_arrays(path)
        np.testing.assert_array_equal(read["a"]["b"], array)
        assert read["a"]["b"].dtype == array.dtype
        assert read["c"] == scalar


def test_a_table_of_anything(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(4):
        (tmp_path / "images" / f"{index}.png").write_bytes(encoded("L", "PNG"))
    good = b"filename,label\n0.png,a\n1.png,a\n2.png,b\n3.png,b\n"
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_bytes(good)
    kinds = [good, good + b"only\n", good + b",,,\n", b"\xff\xfe" + good, good + b"a" * 200_000]

    @settings(fuzz, max_examples=100)
    @given(damaged(kinds))
    def check(data):
        (tmp_path / "val.csv").write_bytes(data)
        with answered():
            assert load_small_mini_imagenet(tmp_path).validation.images.shape == (4, 3, 3, 3)

    check()
