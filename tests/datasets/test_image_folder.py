"""Folders of images, and splits by classes, on small files."""

import random
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from reptile_jax.datasets import (
    class_folders,
    load_image_folder,
    read_images,
    split_classes,
)
from reptile_jax.datasets.folders import summary_of
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
    for name in ("Bee", "ape", "dog", "été"):
        shutil.rmtree(animals / name)
    with pytest.raises(ValueError, match=r"1 classes .* a smaller test_fraction \(--test-frac"):
        load_image_folder(animals, size=8)


def copied(animals, folder, **splits):
    """The animals in a folder that is split."""
    for split, names in splits.items():
        for name in names:
            shutil.copytree(animals / name, folder / split / name)
    return folder


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_a_folder_that_is_split_already_stays_so(animals, tmp_path, validation):
    parts = {"train": ["dog", "cow"], "test": ["ape"], validation: ["Bee", "été"]}
    folder = copied(animals, tmp_path / "split", **parts)
    splits = load_image_folder(folder, size=8, test_fraction=0.9, seed=3)
    assert splits.train_names == ("cow", "dog")
    assert splits.validation_names == ("Bee", "été")
    assert splits.test_names == ("ape",)
    for split, classes, names in (
        ("train", splits.train, splits.train_names),
        (validation, splits.validation, splits.validation_names),
        ("test", splits.test, splits.test_names),
    ):
        for index, name in enumerate(names):
            files = class_folders(folder / split)[name]
            np.testing.assert_array_equal(class_images(classes, index), read_images(files, size=8))
    shutil.rmtree(folder / validation)
    splits = load_image_folder(folder, size=8)
    assert splits.validation is None
    assert splits.validation_names == ()


def test_classes_and_images_that_do_not_fit_are_named_with_their_split(animals, tmp_path):
    folder = copied(animals, tmp_path / "split", train=["dog", "cow"], test=["ape", "dog"])
    with pytest.raises(ValueError, match=r"these classes are in more than one split: dog\. "):
        load_image_folder(folder, size=8)
    shutil.rmtree(folder / "test" / "dog")
    with pytest.raises(ValueError, match=r"min_images=4 .*: train/cow \(2\)\. .*--train-shots"):
        load_image_folder(folder, size=8, min_images=4)


def test_classes_named_train_and_test_are_classes(animals, tmp_path):
    for name, copy in (("dog", "train"), ("ape", "test"), ("cow", "bus")):
        shutil.copytree(animals / name, tmp_path / "vehicles" / copy)
    splits = load_image_folder(tmp_path / "vehicles", size=8)
    assert sorted(splits.train_names + splits.test_names) == ["bus", "test", "train"]


def test_images_in_other_places_are_counted_in_a_message_of_what_is_expected(animals, tmp_path):
    expected = "there are no images in class folders of .*FOLDER/class/image.png, or FOLDER/train"
    flat = r"3 files left out: 2 \.jpeg not directly in a class folder, 1 \.txt; such as 0\.JPeG"
    with pytest.raises(ValueError, match=f"{expected}.* {flat}"):
        load_image_folder(animals / "cow", size=8)
    shutil.copytree(animals, tmp_path / "a" / "deep" / "animals")
    (tmp_path / "a" / "deep" / "animals" / "README").write_bytes(b"")
    with pytest.raises(
        ValueError, match=rf"{expected}.* 20 \.jpeg .*, 1 without an ending.*; such"
    ):
        load_image_folder(tmp_path / "a", size=8)
    shutil.copytree(animals, tmp_path / "b" / "train")  # and no test/
    with pytest.raises(ValueError, match=expected):
        load_image_folder(tmp_path / "b", size=8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=expected):
        load_image_folder(tmp_path / "empty", size=8)


def test_files_that_are_left_out_are_listed(animals):
    saved(noise(4, 4), animals / "dog" / "deeper" / "a.png")
    saved(noise(4, 4), animals / "b.png")
    (animals / "dog" / "@eaDir" / "0.JPeG").mkdir(parents=True)
    (animals / "dog" / "@eaDir" / "0.JPeG" / "thumbnail.jpg").write_bytes(b"")
    (animals / "cow" / "photo.heic").write_bytes(b"")
    splits = load_image_folder(animals, size=8)
    notes = [name + "/notes.txt" for name in ("Bee", "ape", "cow", "dog", "été")]
    others = ["b.png", "cow/photo.heic", "dog/deeper/a.png", "list.csv", *notes]
    assert splits.left_out == tuple(sorted(animals / name for name in others))
    assert summary_of(splits.left_out, animals) == (
        "9 files left out: 5 .txt, 2 .png not directly in a class folder, 1 .heic, 1 .csv; such as "
        "Bee/notes.txt"
    )


def test_many_classes_are_counted_and_the_first_named(tmp_path):
    for number in range(300):
        (tmp_path / f"{number:03}").mkdir()
    saved(noise(4, 4), tmp_path / "000" / "a.png")
    first = r"000 \(1\), 001 \(0\), 002 \(0\), 003 \(0\), 004 \(0\) and 295 more\."
    with pytest.raises(ValueError, match=first) as caught:
        load_image_folder(tmp_path, size=8)
    assert len(str(caught.value)) < 500


def test_all_damaged_images_of_all_splits_are_found_at_once(animals):
    for name in ("dog", "ape", "cow", "Bee", "été"):
        (animals / name / "0.JPeG").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"cannot read 5 of 20 images: .*; and 2 more"):
        load_image_folder(animals, size=8)


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
