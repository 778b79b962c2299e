"""mini-ImageNet, on small files in each of its forms."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reptile_jax.datasets import load_mini_imagenet, mini_imagenet
from tests.attacks import cheap, no_hang, special_files
from tests.image_files import class_images, encoded, noise, saved
from tests.nonsense import answered, damaged, fuzz

SPLITS = {"train": ["n03", "n01", "n02"], "val": ["n05"], "test": ["n07", "n06"]}
SMALL = {"num_classes": (3, 1, 2), "images_per_class": 4}


def photo(name, index, size=84):
    return noise(size, size, 3, seed=[int(name[1:]), index])


def check_mini_imagenet(splits, size=84):
    """Classes sorted by name, images of each in their order."""
    for classes, names, split in (
        (splits.train, splits.train_names, "train"),
        (splits.validation, splits.validation_names, "val"),
        (splits.test, splits.test_names, "test"),
    ):
        assert names == tuple(sorted(SPLITS[split]))
        np.testing.assert_array_equal(classes.counts, 4)
        assert classes.images.dtype == np.uint8
        for index, name in enumerate(names):
            expected = np.stack([photo(name, number, size) for number in range(4)])
            np.testing.assert_array_equal(class_images(classes, index), expected)


def write_photo_folders(folder):
    for split, names in SPLITS.items():
        for name in names:
            for index in range(4):
                saved(photo(name, index), folder / split / name / f"{name}_{index}.png")


def test_mini_imagenet_from_split_folders(tmp_path):
    write_photo_folders(tmp_path)
    check_mini_imagenet(load_mini_imagenet(tmp_path, **SMALL))


def test_mini_imagenet_scaling_is_nearest_by_default(tmp_path):
    write_photo_folders(tmp_path)
    for options, resample in (({}, "NEAREST"), ({"resample": "bicubic"}, "BICUBIC")):
        splits = load_mini_imagenet(tmp_path, size=20, **options, **SMALL)
        expected = Image.fromarray(photo("n01", 0)).resize((20, 20), Image.Resampling[resample])
        np.testing.assert_array_equal(splits.train.images[0], expected)


def write_csv(folder, split, rows, header="filename,label"):
    (folder / f"{split}.csv").write_text("\n".join([header, *rows]) + "\n")


def test_mini_imagenet_from_csv(tmp_path):
    for split, names in SPLITS.items():
        rows = [f"{name}_{index}.png,{name}" for index in range(4) for name in names]
        write_csv(tmp_path, split, rows)
        for name in names:
            for index in range(4):
                saved(photo(name, index), tmp_path / "images" / f"{name}_{index}.png")
    check_mini_imagenet(load_mini_imagenet(tmp_path, **SMALL))
    (tmp_path / "images" / "n05_2.png").unlink()
    with pytest.raises(ValueError, match=r"n05_2\.png.*No such file"):
        load_mini_imagenet(tmp_path, **SMALL)
    write_csv(tmp_path, "val", [], header="file,class")
    with pytest.raises(ValueError, match=r"val\.csv must have the columns filename and label"):
        load_mini_imagenet(tmp_path, **SMALL)
    (tmp_path / "val.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.csv"):
        load_mini_imagenet(tmp_path, **SMALL)


def write_pickles(folder, file_name, content, protocol=2):
    for split in SPLITS:
        with open(folder / file_name(split), "wb") as file:
            pickle.dump(content(split), file, protocol=protocol)


def cache_name(split):
    return f"mini-imagenet-cache-{split}.pkl"


def category_name(split):
    return f"miniImageNet_category_split_{'train_phase_' * (split == 'train')}{split}.pickle"


def pickled_images(split):
    """Images interleaved by class: image `i` of class `c` is at `i * classes + c`."""
    return np.stack([photo(name, index) for index in range(4) for name in SPLITS[split]])


def class_dict_content(split, indices=list):
    names = SPLITS[split]
    classes = {name: indices(range(c, 4 * len(names), len(names))) for c, name in enumerate(names)}
    return {"image_data": pickled_images(split), "class_dict": classes}


def labels_content(split, container=list):
    first = {"train": 0, "val": 64, "test": 80}[split]
    names = SPLITS[split]
    return {
        "data": pickled_images(split),
        "labels": container([first + c for _ in range(4) for c in range(len(names))]),
        "catname2label": {name: first + c for c, name in enumerate(names)},
    }


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("container", [list, np.array])
def test_mini_imagenet_from_pickles(tmp_path, protocol, container):
    write_pickles(tmp_path, cache_name, lambda s: class_dict_content(s, container), protocol)
    check_mini_imagenet(load_mini_imagenet(tmp_path, **SMALL))
    for path in tmp_path.iterdir():
        path.unlink()
    write_pickles(tmp_path, category_name, lambda s: labels_content(s, container), protocol)
    check_mini_imagenet(load_mini_imagenet(tmp_path, **SMALL))


def test_mini_imagenet_labels_without_names(tmp_path):
    write_pickles(
        tmp_path,
        category_name,
        lambda split: {**labels_content(split), "catname2label": {}},
    )
    splits = load_mini_imagenet(tmp_path, **SMALL)
    assert splits.train_names == ("0", "1", "2")
    assert splits.test_names == ("80", "81")
    np.testing.assert_array_equal(class_images(splits.train, 0)[1], photo("n03", 1))


def python_2_pickle(images, classes):
    """What Python 2 and NumPy 1 write with protocol 2: byte strings, and the old module names."""
    text = lambda content: b"T" + struct.pack("<i", len(content)) + content
    number = lambda value: b"J" + struct.pack("<i", value)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01("
        + b"".join(map(number, images.shape))
        + b"tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        + b"K\x00tb\x89"
        + text(images.tobytes())
        + b"tb"
    )
    lists = b"".join(
        text(name.encode()) + b"](" + b"".join(map(number, indices)) + b"e"
        for name, indices in classes.items()
    )
    return (
        b"\x80\x02}(" + text(b"image_data") + array + text(b"class_dict") + b"}(" + lists + b"uu."
    )


def test_mini_imagenet_from_pickles_of_python_2(tmp_path):
    for split in SPLITS:
        content = class_dict_content(split)
        data = python_2_pickle(content["image_data"], content["class_dict"])
        (tmp_path / cache_name(split)).write_bytes(data)
    check_mini_imagenet(load_mini_imagenet(tmp_path, **SMALL))


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.mkdir, ("{}",), r"(posix|nt)\.mkdir"),
        (eval, ("__import__('os').mkdir('{}')",), r"(builtins|__builtin__)\.eval"),
        (getattr, ([], "append"), r"(builtins|__builtin__)\.getattr"),
        (np.load, ("{}",), r"numpy.*\.load"),
        (Path, ("a",), "pathlib"),
    ],
)
def test_pickles_that_execute_code_are_refused(tmp_path, protocol, function, arguments, name):
    made = tmp_path / "made"
    attack = Attack(function, *(str(a).format(made) for a in arguments))
    content = {**class_dict_content("train"), "extra": attack}
    write_pickles(tmp_path, cache_name, lambda split: content, protocol)
    with pytest.raises(ValueError, match=rf"cache-train\.pkl: it asks for .*{name}.*refused"):
        load_mini_imagenet(tmp_path, **SMALL)
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"image_data": "x", "class_dict": {}},
            "must contain a dict .* it has .'image_data', 'class_dict'.",
        ),
        ({"image_data": noise(2, 84, 84, 3)}, "must contain a dict .* it has .'image_data'."),
        ([1, 2], "must contain a dict"),
        (
            {"image_data": noise(2, 32, 32, 3), "class_dict": {}},
            r"must be uint8 \[images, 84, 84, 3\], they are uint8 \[2, 32, 32, 3\]",
        ),
        ({"data": np.zeros((2, 84, 84, 3)), "labels": [0, 0]}, "they are float64"),
        ({"image_data": noise(2, 84, 84, 3), "class_dict": {"a": [0, 2]}}, "is damaged"),
        ({"data": noise(2, 84, 84, 3), "labels": [0, 0, 0]}, "is damaged"),
    ],
)
def test_mini_imagenet_pickles_with_other_contents(tmp_path, content, message):
    write_pickles(tmp_path, cache_name, lambda split: content)
    with pytest.raises(ValueError, match=rf"mini-imagenet-cache-train\.pkl.*{message}|{message}"):
        load_mini_imagenet(tmp_path, **SMALL)


def test_mini_imagenet_damaged_pickle(tmp_path):
    write_pickles(tmp_path, cache_name, class_dict_content)
    path = tmp_path / cache_name("test")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cannot read .*cache-test\.pkl"):
        load_mini_imagenet(tmp_path, **SMALL)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"cache-test\.pkl"):
        load_mini_imagenet(tmp_path, **SMALL)


def test_mini_imagenet_checks_counts(tmp_path):
    write_photo_folders(tmp_path)
    with pytest.raises(ValueError, match=r"the train split .* 3 classes, expected 64"):
        load_mini_imagenet(tmp_path)
    with pytest.raises(
        ValueError, match=r"train split .*have 600 images.*: n01 \(4\), n02 \(4\), n03 \(4\)\."
    ):
        load_mini_imagenet(tmp_path, num_classes=(3, 1, 2))
    saved(photo("n06", 4), tmp_path / "test/n06/more.png")
    with pytest.raises(
        ValueError, match=r"test split .* have 4 images in every class.*: n06 \(5\)\."
    ):
        load_mini_imagenet(tmp_path, **SMALL)


def test_mini_imagenet_from_one_folder_of_classes(tmp_path):
    names = [name for part in mini_imagenet._CLASSES.values() for name in part]
    for index, name in enumerate([*names, "n00000001"]):  # one more of ImageNet's, left out
        saved(np.full((4, 4, 3), index, np.uint8), tmp_path / name / "a.png")
    splits = load_mini_imagenet(tmp_path, size=4, images_per_class=1)
    assert splits.train_names == tuple(names[:64])
    assert splits.validation_names == tuple(names[64:80])
    assert splits.test_names == tuple(names[80:])
    np.testing.assert_array_equal(splits.train.images[:, 0, 0, 0], np.arange(64))
    np.testing.assert_array_equal(splits.test.images[:, 0, 0, 0], np.arange(80, 100))
    for index in (0, 99):
        (tmp_path / names[index]).rename(tmp_path / f"x{index}")
    with pytest.raises(FileNotFoundError, match=r"lacks the .* classes n01532829, n07613480"):
        load_mini_imagenet(tmp_path, size=4, images_per_class=1)


def test_the_class_lists_of_mini_imagenet():
    lists = mini_imagenet._CLASSES
    assert {split: len(names) for split, names in lists.items()} == {
        "train": 64,
        "val": 16,
        "test": 20,
    }
    names = [name for part in lists.values() for name in part]
    assert len(set(names)) == 100
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in names)
    assert all(part == sorted(part) for part in lists.values())


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: (path / "cats").mkdir(parents=True)]
)
def test_mini_imagenet_missing_says_what_was_looked_for(tmp_path, make):
    make(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"none: looked for .*train\.csv.*n01532829"):
        load_mini_imagenet(tmp_path / "none")


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
    return load_mini_imagenet(folder, size=3, num_classes=(2, 2, 2), images_per_class=2)


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


TABLES = {
    "endless": (b"filename,label\n", "has 1,099,511,627,776 bytes, expected at most 4,194,304"),
    "rows": (b"filename,label\n" + b"ab,c\n" * 800_000, "has 1 classes, expected 2"),
    "columns": (b"aa," * 1_390_000, "must have the columns .* and 1,389,99. more"),
    "a field": (b"filename,label\n" + b"a" * 4_000_000, "field larger than field limit"),
}


@pytest.mark.attack
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_takes_little_before_it_is_refused(tmp_path, kind):
    data, message = TABLES[kind]
    for split in SPLITS:
        (tmp_path / f"{split}.csv").write_bytes(data)
        if kind == "endless":
            os.truncate(tmp_path / f"{split}.csv", 2**40)
    with cheap(), pytest.raises((ValueError, OSError), match=message):
        load_small_mini_imagenet(tmp_path)


@pytest.mark.attack
@pytest.mark.parametrize("name", ["train.csv", "mini-imagenet-cache-train.pkl"])
def test_tables_and_pickles_are_regular_files(tmp_path, name):
    (tmp_path / "others").mkdir()
    for path in special_files(tmp_path / "others", ""):
        path.rename(tmp_path / name)
        with no_hang(), pytest.raises(OSError, match=rf"{name} is (a named pipe|a device|empty)"):
            load_small_mini_imagenet(tmp_path)
        (tmp_path / name).unlink()
