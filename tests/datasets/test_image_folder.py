"""Folders of images, and splits by classes, on small files."""

import random

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from reptile_jax.datasets import (
    class_folders,
    image_files,
    load_image_folder,
    read_images,
    split_classes,
)
from tests.image_files import class_images, noise, saved


@pytest.fixture
def animals(tmp_path):
    """Five classes of 2, 3, ... 6 images, with clutter."""
    folder = tmp_path / "animals"
    for count, name in enumerate(["cow", "Bee", "ape", "dog", "été"], start=2):
        for index in range(count):
            saved(noise(9, 7, 3, seed=[count, index]), folder / name / f"{index}.JPeG", quality=95)
        (folder / name / ".hidden.png").write_bytes(b"")
        (folder / name / "notes.txt").write_bytes(b"")
    (folder / ".git").mkdir()
    (folder / "__MACOSX").mkdir()
    (folder / "list.csv").write_bytes(b"")
    return folder


def test_image_folder_of_unequal_classes(animals):
    splits = load_image_folder(animals, size=8, test_fraction=0.4, seed=3)
    train, validation, test = split_classes(
        ["cow", "Bee", "ape", "dog", "été"], test_fraction=0.4, seed=3
    )
    assert (splits.train_names, splits.test_names) == (tuple(train), tuple(test))
    assert validation == []
    assert splits.validation is None
    for classes, names in ((splits.train, train), (splits.test, test)):
        for index, name in enumerate(names):
            files = sorted((animals / name).glob("[0-9]*"))
            np.testing.assert_array_equal(class_images(classes, index), read_images(files, size=8))
        assert len(classes.images) == classes.counts.sum()
    splits = load_image_folder(
        animals, size=8, color="grey", resample="nearest", validation_fraction=0.2
    )
    assert splits.train.images.shape[1:] == (8, 8, 1)
    assert len(splits.validation_names) == len(splits.validation.counts) == 1
    names = [*splits.train_names, *splits.validation_names, *splits.test_names]
    assert sorted(names) == sorted(["cow", "Bee", "ape", "dog", "été"])


def test_image_folder_names_every_class_with_too_few_images(animals):
    (animals / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"fewer than min_images=4 .*: Bee \(3\), cow \(2\), empty \(0\)\."
    ):
        load_image_folder(animals, size=8, min_images=4)


def test_image_folder_names_the_image_that_cannot_be_decoded(animals):
    (animals / "dog" / "3.JPeG").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"cannot read the image .*dog.3\.JPeG"):
        load_image_folder(animals, size=8)


def test_image_folder_checks_its_arguments(animals, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none"):
        load_image_folder(tmp_path / "none", size=8)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        load_image_folder(animals, size=0)
    with pytest.raises(ValueError, match="0 classes are too few to split"):
        load_image_folder(animals / "cow", size=8)


def test_class_folders_are_sorted_and_without_clutter(animals):
    (animals / "dog" / "deeper").mkdir()
    saved(noise(4, 4, 3), animals / "dog" / "deeper" / "a.png")
    (animals / "dog" / "folder.png").mkdir()
    (animals / "none").mkdir()
    folders = class_folders(str(animals))
    assert list(folders) == ["Bee", "ape", "cow", "dog", "none", "été"]
    assert folders["Bee"] == [animals / "Bee" / f"{index}.JPeG" for index in range(3)]
    assert len(folders["dog"]) == 5
    assert folders["none"] == []
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*list\.csv"):
        class_folders(animals / "list.csv")


def test_image_files_are_found_at_any_depth_and_sorted_by_path(tmp_path):
    folder = tmp_path / ".above" / "queries"  # what is hidden above the folder does not matter
    found = ["a/z.png", "a/deep/er/b.TIFF", "a-b/c.png", "b.png"]
    others = [".hidden.png", ".git/a.png", "a/.deep/c.png", "a/notes.txt", "png"]
    for name in [*found, *others]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "folder.png").mkdir()
    # By the path's parts: as text, "a-b/" comes before "a/".
    expected = ["a/deep/er/b.TIFF", "a/z.png", "a-b/c.png", "b.png"]
    assert image_files(folder) == [folder / name for name in expected]
    assert image_files(str(folder)) == image_files(folder)


def test_image_files_says_what_is_missing(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"there are no images in .*: looked for \.bmp, .*\.webp"):
        image_files(tmp_path)
    for name in ("none", "notes.txt"):
        with pytest.raises(FileNotFoundError, match=f"there is no folder .*{name}"):
            image_files(tmp_path / name)


def test_split_classes_by_the_stated_rule():
    names = [f"class {index}" for index in range(10)]
    shuffled = sorted(names)
    random.Random(7).shuffle(shuffled)
    train, validation, test = split_classes(
        names[::-1], test_fraction=0.3, validation_fraction=0.2, seed=7
    )
    assert train == sorted(shuffled[:5])
    assert validation == sorted(shuffled[5:7])
    assert test == sorted(shuffled[7:])


@hypothesis.given(
    names=st.sets(st.text(min_size=1), min_size=3),
    seed=st.integers(0, 9),
    test_fraction=st.floats(0.01, 0.5),
    validation_fraction=st.floats(0.001, 0.4),
    order=st.randoms(use_true_random=False),
)
@hypothesis.settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_split_classes_properties(names, seed, test_fraction, validation_fraction, order):
    shares = {"test_fraction": test_fraction, "seed": seed}
    try:
        parts = split_classes(names, validation_fraction=validation_fraction, **shares)
    except ValueError:  # no class left for training
        hypothesis.reject()
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert all(parts)
    mixed = sorted(names)
    order.shuffle(mixed)
    assert split_classes(mixed, validation_fraction=validation_fraction, **shares) == parts
    train, none, test = split_classes(names, **shares)
    assert none == []
    assert test == parts[2]
    assert set(parts[0]) <= set(train)


def test_split_classes_checks_its_arguments():
    for test_fraction, validation_fraction in (
        *((0, 0), (1, 0), (0.5, 0.5), (0.5, -0.1)),
        *(("0.5", 0), (0.5, None), (float("nan"), 0)),
    ):
        with pytest.raises(ValueError, match="test_fraction must be above 0"):
            split_classes(
                "abcdef", test_fraction=test_fraction, validation_fraction=validation_fraction
            )
    with pytest.raises(ValueError, match=r"2 classes are too few .* leave none for training"):
        split_classes("ab", validation_fraction=0.1)
