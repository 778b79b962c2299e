"""Which files of a folder are images, on small files."""

import os

import pytest

from reptile_jax.datasets import class_folders, image_files, load_image_folder
from reptile_jax.datasets.folders import left_out
from tests.attacks import no_hang, special_files
from tests.image_files import noise, saved


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


def test_one_file_is_taken_for_an_image(tmp_path):
    path = saved(noise(4, 4), tmp_path / "photo.png")
    assert image_files(path) == image_files(str(path)) == [path]


def test_links_to_folders_are_followed_and_end(tmp_path):
    for name in ("here/a.png", "there/b.png"):
        saved(noise(4, 4), tmp_path / name)
    (tmp_path / "here" / "link").symlink_to(tmp_path / "there")
    (tmp_path / "there" / "up").symlink_to(tmp_path / "here")
    (tmp_path / "there" / "itself").symlink_to(tmp_path / "there")
    names = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path / "here")]
    assert names == ["here/a.png", "here/link/b.png"]
    names = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert names == ["here/a.png", "there/b.png"]  # under their own names


def test_image_files_says_what_is_missing(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"")
    left_out = r"1 file left out: 1 \.txt; such as notes\.txt"
    with pytest.raises(
        ValueError, match=rf"there are no images in .*, nor in deeper .*; {left_out}"
    ):
        image_files(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none"):
        image_files(tmp_path / "none")


@pytest.mark.attack
def test_a_link_to_a_folder_above_is_not_followed(tmp_path, monkeypatch):
    """It may lead to the whole disk."""
    folder = tmp_path / "a" / "queries"
    path = saved(noise(4, 4), folder / "deep" / "a.png")
    for name, target in (("up", tmp_path), ("itself", folder), ("disk", "/")):
        (folder / "deep" / name).symlink_to(target)
    saved(noise(4, 4), tmp_path / "a" / "other.png")
    entered, walk = [], os.walk
    monkeypatch.setattr(os, "walk", lambda top, **how: entered.append(top) or walk(top, **how))
    assert image_files(folder) == [path]
    assert left_out(folder) == [path]
    assert entered == [folder, folder]


@pytest.mark.attack
def test_pipes_and_devices_among_images_are_named_and_nothing_waits_for_them(tmp_path):
    for name in ("ape", "cow", "dog"):
        for index in range(2):
            saved(noise(4, 4, 3), tmp_path / name / f"{index}.png")
    special = special_files(tmp_path / "cow", ".png")
    special_files(tmp_path / "dog", ".txt")
    assert set(special) < set(class_folders(tmp_path)["cow"])
    with (
        no_hang(),
        pytest.raises(ValueError, match=r"cannot read .*cow.* is a (device|named pipe)"),
    ):
        load_image_folder(tmp_path, size=4)
    with no_hang(), pytest.raises(FileNotFoundError, match=r"no folder or image .*pipe\.png"):
        image_files(special[0])
    for path in special:
        path.unlink()
    with no_hang():
        assert load_image_folder(tmp_path, size=4).train.images.shape == (4, 4, 4, 3)
