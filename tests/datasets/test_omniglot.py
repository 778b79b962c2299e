"""Omniglot, on small sets in the official layout, and on the real one where it is there."""

import io
import os
import random
import struct
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from reptile_jax.datasets import load_omniglot
from reptile_jax.datasets import omniglot as loader
from tests.attacks import cheap, no_hang, png, special_files
from tests.image_files import class_images, encoded
from tests.nonsense import answered, damaged, fuzz


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own for each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("REPTILE_JAX_CACHE", str(folder))
    return folder


# In the background set an alphabet that sorts after one of the evaluation set, and two whose
# names, when joined with a character's, would sort differently than by themselves.
CHARACTERS = {
    "images_background": {"Zulu": 2, "Jap": 2, "Jap(x)": 1},
    "images_evaluation": {"Angelic": 3, "Mongo": 1},
}
MERGED = [
    "Angelic/character01",
    "Angelic/character02",
    "Angelic/character03",
    "Jap/character01",
    "Jap/character02",
    "Jap(x)/character01",
    "Mongo/character01",
    "Zulu/character01",
    "Zulu/character02",
]
DRAWINGS = 3


def drawing(name, index, side=105):
    """A 1-bit drawing that no other has."""
    return np.random.default_rng([*name.encode(), index]).random((side, side)) < 0.9


def write_omniglot(folder, name, *, zipped=True):
    """One set in the official layout, members in no particular order, with the clutter of macOS."""
    files = {
        ".DS_Store": b"x",
        f"{name}/README.txt": b"",
        f"__MACOSX/{name}/Zulu/character01/._1_01.png": b"x",
    }
    for alphabet, characters in CHARACTERS[name].items():
        files[f"{name}/{alphabet}/character01/._0007_01.png"] = b"x"
        for character in range(1, characters + 1):
            for index in range(DRAWINGS, 0, -1):
                path = f"{alphabet}/character{character:02d}"
                data = io.BytesIO()
                Image.fromarray(drawing(path, index)).save(data, "PNG")
                files[f"{name}/{path}/0007_{index:02d}.png"] = data.getvalue()
    if zipped:
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path, data in files.items():
                archive.writestr(path, data)
    else:
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)


@pytest.fixture
def small(monkeypatch):
    """The small sets' numbers in place of the official ones."""
    counts = {name: sum(characters.values()) for name, characters in CHARACTERS.items()}
    monkeypatch.setattr(loader, "_CLASSES", counts)
    monkeypatch.setattr(loader, "_DRAWINGS", DRAWINGS)


@pytest.fixture
def omniglot(tmp_path, small):
    folder = tmp_path / "omniglot"
    folder.mkdir()
    for name in CHARACTERS:
        write_omniglot(folder, name)
    return folder


def expected_drawings(name, turn=0, size=28):
    """As the released code has them: Pillow's nearest-neighbour scaling, then its rotation."""
    return np.stack(
        [
            np.array(
                Image.fromarray(drawing(name, index))
                .resize((size, size), Image.Resampling.NEAREST)
                .rotate(turn)
            )
            for index in range(1, DRAWINGS + 1)
        ]
    )[..., None]


def assert_same(one, other):
    assert one.train_names == other.train_names
    assert one.test_names == other.test_names
    for a, b in zip([*one.train, *one.test], [*other.train, *other.test], strict=True):
        np.testing.assert_array_equal(a, b)


def test_omniglot_paper_split_and_images(omniglot):
    shuffled = list(MERGED)
    random.Random(0).shuffle(shuffled)
    before = random.getstate()
    splits = load_omniglot(omniglot, num_train=6)
    assert random.getstate() == before
    turns = {"": 0, "+90": 90, "+180": 180, "+270": 270}
    assert splits.train_names == tuple(name + turn for name in shuffled[:6] for turn in turns)
    assert splits.test_names == tuple(shuffled[6:])
    assert splits.validation is None
    assert splits.validation_names == ()
    assert splits.train.images.shape == (6 * 4 * DRAWINGS, 28, 28, 1)
    assert splits.train.images.dtype == np.uint8
    assert splits.train.starts.dtype == splits.train.counts.dtype == np.int32
    for index, name in enumerate(splits.train_names):
        name, _, turn = name.partition("+")
        expected = expected_drawings(name, turns[f"+{turn}" if turn else ""])
        np.testing.assert_array_equal(class_images(splits.train, index) / 255, expected)
    for index, name in enumerate(splits.test_names):
        np.testing.assert_array_equal(
            class_images(splits.test, index) / 255, expected_drawings(name)
        )


def test_omniglot_background_split_and_without_rotations(omniglot):
    splits = load_omniglot(omniglot, split="background", rotations=False, size=105)
    assert splits.train_names == tuple(sorted_names("images_background"))
    assert splits.test_names == tuple(sorted_names("images_evaluation"))
    np.testing.assert_array_equal(
        class_images(splits.train, 2) / 255, expected_drawings("Jap(x)/character01", size=105)
    )


def test_omniglot_mirrored(omniglot):
    once, twice = (load_omniglot(omniglot, num_train=5, mirrored=add) for add in (False, True))
    number = len(once.train_names)
    assert twice.train_names[:number] == once.train_names
    assert twice.train_names[number + 1] == f"{once.train_names[1]} mirrored"
    for index in (0, 1, number - 1):
        plain, mirror = (class_images(twice.train, at) for at in (index, number + index))
        np.testing.assert_array_equal(plain, class_images(once.train, index))
        np.testing.assert_array_equal(mirror, plain[:, :, ::-1])
    assert twice.test_names == once.test_names


def sorted_names(name):
    return [one for one in MERGED if one.split("/")[0] in CHARACTERS[name]]


@pytest.mark.parametrize("zipped", [(False, False), (True, False)])
def test_omniglot_from_folders_is_the_same(omniglot, tmp_path, zipped):
    folder = tmp_path / "extracted"
    folder.mkdir()
    for name, flag in zip(CHARACTERS, zipped, strict=True):
        write_omniglot(folder, name, zipped=flag)
    for _ in range(2):  # decoded, then cached
        assert_same(load_omniglot(folder, num_train=6), load_omniglot(omniglot, num_train=6))


def test_omniglot_cache_is_used_and_needs_no_pillow(omniglot, cache, monkeypatch):
    first = load_omniglot(omniglot, num_train=6)
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert_same(load_omniglot(omniglot, num_train=6), first)
    with pytest.raises(ImportError, match="reptile-jax"):  # another size is not cached
        load_omniglot(omniglot, num_train=6, size=14)
    with pytest.raises(ImportError, match="reptile-jax"):
        load_omniglot(omniglot, num_train=6, cache=False)


@pytest.mark.parametrize(("more_bytes", "more_ns"), [(0, 1000), (1, 0)])
def test_omniglot_cache_notices_a_changed_zip(omniglot, more_bytes, more_ns):
    load_omniglot(omniglot, num_train=6)
    source = omniglot / "images_evaluation.zip"
    stat = source.stat()
    source.write_bytes(b"x" * (stat.st_size + more_bytes))
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns + more_ns))
    with pytest.raises(ValueError, match=r"images_evaluation\.zip is damaged"):
        load_omniglot(omniglot, num_train=6)


def test_omniglot_cache_is_not_shared_by_folders_or_sizes(omniglot, cache, tmp_path):
    load_omniglot(omniglot, num_train=6)
    assert load_omniglot(omniglot, num_train=6, size=14).test.images.shape[1:3] == (14, 14)
    assert len(list(cache.iterdir())) == 4
    other = tmp_path / "other"
    other.mkdir()
    for source in omniglot.iterdir():
        stat = source.stat()
        (other / source.name).write_bytes(b"x" * stat.st_size)
        os.utime(other / source.name, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ValueError, match=r"images_background\.zip is damaged"):
        load_omniglot(other, num_train=6)


def test_omniglot_cache_notices_a_file_removed_from_a_folder(tmp_path, small):
    for name in CHARACTERS:
        write_omniglot(tmp_path, name, zipped=False)
    load_omniglot(tmp_path, num_train=6)
    removed = tmp_path / "images_evaluation/Mongo/character01/0007_02.png"
    removed.unlink()
    os.utime(removed.parent, ns=(0, 0))
    with pytest.raises(ValueError, match=r"has .*Mongo/character01 \(2\)"):
        load_omniglot(tmp_path, num_train=6)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_omniglot_rebuilds_a_truncated_cache(omniglot, cache, keep):
    first = load_omniglot(omniglot, num_train=6)
    for path in cache.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    assert_same(load_omniglot(omniglot, num_train=6), first)
    for path in cache.iterdir():  # and mended it
        with np.load(path) as stored:
            assert set(stored) == {"names", "bits"}


def test_omniglot_rebuilds_a_cache_with_flipped_bytes(omniglot, cache):
    first = load_omniglot(omniglot, num_train=6)
    paths = sorted(cache.iterdir())
    data = [path.read_bytes() for path in paths]
    for place in range(0, len(data[0]), max(1, len(data[0]) // 60)):
        for path, whole in zip(paths, data, strict=True):
            flipped = bytearray(whole)
            flipped[place % len(whole)] ^= 0xFF
            path.write_bytes(flipped)
        assert_same(load_omniglot(omniglot, num_train=6), first)


def test_omniglot_rebuilds_a_cache_with_other_contents(omniglot, cache):
    first = load_omniglot(omniglot, num_train=6)
    for path in cache.iterdir():
        with open(path, "wb") as file:
            np.savez(file, names=np.array(["a"]), bits=np.zeros(3, np.uint8))
    assert_same(load_omniglot(omniglot, num_train=6), first)


def test_omniglot_cache_is_written_whole_or_not_at_all(omniglot, cache, monkeypatch):
    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_omniglot(omniglot, num_train=6)
    assert list(cache.iterdir()) == []


def test_omniglot_without_a_writable_cache(omniglot, tmp_path, monkeypatch):
    first = load_omniglot(omniglot, num_train=6)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPTILE_JAX_CACHE", str(tmp_path / "file" / "cache"))
    assert_same(load_omniglot(omniglot, num_train=6), first)


def test_omniglot_cache_folder(omniglot, tmp_path, monkeypatch):
    monkeypatch.delenv("REPTILE_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    load_omniglot(omniglot, num_train=6)
    assert len(list((tmp_path / "home/.cache/reptile_jax").glob("*.npz"))) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_omniglot(omniglot, num_train=6)
    assert len(list((tmp_path / "xdg/reptile_jax").glob("*.npz"))) == 2


def test_omniglot_missing_says_what_to_do(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"missing images_background and images_evaluation.*images_background\.zip or a "
        r"folder images_background.*reptile-jax download omniglot --out .*none",
    ):
        load_omniglot(tmp_path / "none")
    write_omniglot(tmp_path, "images_background")
    for split in ("paper", "background"):
        with pytest.raises(FileNotFoundError, match=r"missing images_evaluation\. Looked for"):
            load_omniglot(tmp_path, split=split)


def test_omniglot_checks_its_arguments(omniglot):
    with pytest.raises(ValueError, match="split must be"):
        load_omniglot(omniglot, split="vinyals")
    with pytest.raises(ValueError, match="at least 1, got 0"):
        load_omniglot(omniglot, size=0)
    for num_train in (0, 9, 1200):
        with pytest.raises(ValueError, match=f"between 1 and 8, got {num_train}"):
            load_omniglot(omniglot, num_train=num_train)


def test_omniglot_checks_the_official_numbers(omniglot, monkeypatch):
    monkeypatch.setattr(loader, "_DRAWINGS", 20)
    with pytest.raises(ValueError, match=r"has 20 drawings.*Jap/character01 \(3\), Jap/char"):
        load_omniglot(omniglot, num_train=6)
    monkeypatch.setitem(loader._CLASSES, "images_background", 964)
    with pytest.raises(
        ValueError, match=r"images_background\.zip has 5 characters .* official set has 964"
    ):
        load_omniglot(omniglot, num_train=6)


def test_the_official_numbers():
    assert loader._CLASSES == {"images_background": 964, "images_evaluation": 659}
    assert loader._DRAWINGS == 20


def test_omniglot_damaged_member_is_named(omniglot, cache):
    path = omniglot / "images_evaluation.zip"
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("images_evaluation/Mongo/character01/0007_02.png")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + 60] ^= 0xFF
    path.write_bytes(data)
    damaged = r"images_evaluation\.zip is damaged at .*Mongo/character01/0007_02\.png.*CRC"
    with pytest.raises(ValueError, match=damaged):
        load_omniglot(omniglot, num_train=6)
    assert [path.name[:17] for path in cache.iterdir()] == ["images_background"]


def test_omniglot_damaged_png_is_named(tmp_path, small):
    for name in CHARACTERS:
        write_omniglot(tmp_path, name, zipped=False)
    path = tmp_path / "images_background/Zulu/character02/0007_01.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"Zulu/character02/0007_01\.png of .*images_background: "):
        load_omniglot(tmp_path, num_train=6)


def omniglot_zip(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(4):
            member = f"{name}/{name}/character0{index // 2}/1_{index % 2}.png"
            archive.writestr(member, encoded("1", "PNG"))
    return file.getvalue()


def use_small_omniglot(monkeypatch):
    monkeypatch.setattr(loader, "_CLASSES", dict.fromkeys(loader._CLASSES, 2))
    monkeypatch.setattr(loader, "_DRAWINGS", 2)


def test_an_archive_of_anything(tmp_path, monkeypatch):
    use_small_omniglot(monkeypatch)
    (tmp_path / "images_background.zip").write_bytes(omniglot_zip("images_background"))
    evaluation = tmp_path / "images_evaluation.zip"

    @settings(fuzz, max_examples=100)
    @given(damaged([omniglot_zip("images_evaluation")]))
    def check(data):
        evaluation.write_bytes(data)
        with answered():
            splits = load_omniglot(tmp_path, num_train=2, size=3, cache=False)
            assert splits.train.images.shape == (16, 3, 3, 1)

    check()


def lying(archive):
    """The archive, whose members claim to have 10 bytes."""
    data = bytearray(archive)
    for sign, at in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        place = data.find(sign)
        while place >= 0:
            struct.pack_into("<I", data, place + at, 10)
            place = data.find(sign, place + 1)
    return bytes(data)


def archive_of(content, how=zipfile.ZIP_DEFLATED):
    """The smallest set, with `content` as its drawings."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how, compresslevel=1) as archive:
        for index in range(4):
            archive.writestr(f"x/x/character0{index // 2}/1_{index % 2}.png", content)
    return file.getvalue()


def table_of_contents():
    """100,000 members, which zipfile would keep in 100 MB, or all that fit into its 64."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", *[0] * 9, 1, *[0] * 6) + b"a"
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry) * 100_000, 0, 0)
    return entry * 100_000 + end


ARCHIVES = {
    "zeros": (lambda: archive_of(bytes(200_000_000)), "larger than 65536 bytes"),
    "zeros that claim to be few": (lambda: lying(archive_of(bytes(200_000_000))), "CRC"),
    "lzma": (lambda: archive_of(b"", zipfile.ZIP_LZMA), "neither stored nor deflated"),
    "bzip2": (lambda: archive_of(b"", zipfile.ZIP_BZIP2), "neither stored nor deflated"),
    "pixels": (lambda: archive_of(png(5000, 5000, color=0)), "25,000,000 pixels, .* 65,536 "),
    "members": (table_of_contents, "its table of contents has more than 4,194,304 bytes"),
}


@pytest.mark.attack
@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_is_refused_by_what_is_read_of_it(tmp_path, monkeypatch, kind):
    use_small_omniglot(monkeypatch)
    make, message = ARCHIVES[kind]
    (tmp_path / "images_background.zip").write_bytes(make())
    (tmp_path / "images_evaluation.zip").write_bytes(omniglot_zip("images_evaluation"))
    with cheap(), pytest.raises(ValueError, match=rf"images_background\.zip.*{message}"):
        load_omniglot(tmp_path, num_train=2, cache=False)


@pytest.mark.attack
def test_pipes_devices_and_large_files_are_refused_before_they_are_opened(tmp_path, monkeypatch):
    use_small_omniglot(monkeypatch)
    (tmp_path / "images_evaluation.zip").write_bytes(omniglot_zip("images_evaluation"))
    background = tmp_path / "images_background.zip"
    background.touch()
    os.truncate(background, 2**40)
    with pytest.raises(ValueError, match=r"zip has 1,099,511,627,776 bytes, expected at most 67,1"):
        load_omniglot(tmp_path, num_train=2, cache=False)
    background.unlink()
    for path in special_files(tmp_path, ""):
        path.rename(background)
        with no_hang(), pytest.raises(ValueError, match=r"is (a named pipe|a device|empty)"):
            load_omniglot(tmp_path, num_train=2, cache=False)
        background.unlink()
    for character in ("character00", "character01"):
        folder = tmp_path / "images_background" / "x" / character
        folder.mkdir(parents=True)
        for name in ("1_0.png", "1_1.png"):
            os.mkfifo(folder / name)
    with no_hang(), pytest.raises(ValueError, match=r"damaged at .*1_0\.png.* is a named pipe"):
        load_omniglot(tmp_path, num_train=2, cache=False)


@pytest.mark.attack
def test_a_pipe_in_the_cache_is_passed_over(tmp_path, monkeypatch, cache):
    use_small_omniglot(monkeypatch)
    for name in loader._CLASSES:
        (tmp_path / f"{name}.zip").write_bytes(omniglot_zip(name))
    expected = load_omniglot(tmp_path, num_train=2)
    for path in list(cache.iterdir()):
        path.unlink()
        os.mkfifo(path)
    with no_hang():
        found = load_omniglot(tmp_path, num_train=2)
    np.testing.assert_array_equal(found.train.images, expected.train.images)


# The real Omniglot.

OMNIGLOT = Path(
    os.environ.get("REPTILE_JAX_OMNIGLOT")
    or Path(__file__).parents[3] / "shared" / "data" / "omniglot"
)
real = pytest.mark.skipif(
    not OMNIGLOT.exists(), reason="no Omniglot: set REPTILE_JAX_OMNIGLOT to its folder"
)


@pytest.fixture(scope="module")
def decoded(tmp_path_factory):
    """Omniglot without rotations, and the cache that was filled by loading it."""
    folder = tmp_path_factory.mktemp("omniglot-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPTILE_JAX_CACHE", str(folder))
        return load_omniglot(OMNIGLOT, rotations=False), folder


def listed(folder, name):
    """The files below one set, as `alphabet/characterNN/XXXX_YY.png`, without the loader's help."""
    if (folder / f"{name}.zip").exists():
        with zipfile.ZipFile(folder / f"{name}.zip") as archive:
            members = [member.split("/", 1)[1] for member in archive.namelist() if "/" in member]
    else:
        members = [path.relative_to(folder / name).as_posix() for path in folder.glob("*/*/*.png")]
    return [member for member in members if member.endswith(".png")]


def merged_alphabets():
    """alphabet → its characters, of both sets."""
    alphabets = {}
    for name in ("images_background", "images_evaluation"):
        for member in listed(OMNIGLOT, name):
            alphabet, character, _ = member.split("/")
            alphabets.setdefault(alphabet, set()).add(character)
    return alphabets


@real
def test_real_omniglot_split_is_the_papers(decoded):
    alphabets = merged_alphabets()
    dataset = [
        f"{alphabet}/{character}"
        for alphabet in sorted(alphabets)
        for character in sorted(alphabets[alphabet])
    ]
    state = random.getstate()
    random.seed(0)
    random.shuffle(dataset)
    random.setstate(state)
    assert len(dataset) == 1623
    splits = decoded[0]
    assert list(splits.train_names) == dataset[:1200]
    assert list(splits.test_names) == dataset[1200:]


@real
def test_real_omniglot_facts(decoded):
    splits = decoded[0]
    # Written out, so that a change of the rule in both places would show.
    assert splits.train_names[:3] == (
        "Japanese_(hiragana)/character47",
        "Syriac_(Serto)/character02",
        "Korean/character07",
    )
    assert splits.train_names[-2:] == ("Keble/character05", "Grantha/character18")
    assert splits.test_names[:2] == ("Malayalam/character17", "Mkhedruli_(Georgian)/character07")
    assert splits.test_names[-3:] == (
        "Japanese_(katakana)/character36",
        "Tifinagh/character11",
        "Japanese_(hiragana)/character15",
    )
    assert splits.train.images.shape == (1200 * 20, 28, 28, 1)
    assert splits.test.images.shape == (423 * 20, 28, 28, 1)
    values, counts = np.unique(
        np.concatenate([splits.train.images, splits.test.images]), return_counts=True
    )
    assert values.tolist() == [0, 255]
    assert counts[1] / counts.sum() == pytest.approx(0.92, abs=0.005)


@real
def test_real_omniglot_from_the_cache_is_the_same_and_quick(decoded, monkeypatch):
    fresh, folder = decoded
    monkeypatch.setenv("REPTILE_JAX_CACHE", str(folder))
    monkeypatch.setitem(sys.modules, "PIL", None)
    begin = time.perf_counter()
    splits = load_omniglot(OMNIGLOT, rotations=False)
    assert time.perf_counter() - begin < 3  # some 0.05 s on an idle machine
    assert_same(splits, fresh)
    turned = load_omniglot(OMNIGLOT)
    assert len(turned.train_names) == 4800
    np.testing.assert_array_equal(turned.train.counts, 20)
    other = load_omniglot(OMNIGLOT, split="background", rotations=False)
    assert (len(other.train_names), len(other.test_names)) == (964, 659)
    alphabets = [{name.split("/")[0] for name in names} for names in (other[2], other[3])]
    assert [len(names) for names in alphabets] == [30, 20]
    assert not alphabets[0] & alphabets[1]


@real
def test_real_omniglot_drawings_are_as_pillow_scales_them(decoded):
    splits = decoded[0]
    index, name = 5, splits.test_names[5]
    for zipped in (OMNIGLOT / f"images_{part}.zip" for part in ("background", "evaluation")):
        if not zipped.exists():
            pytest.skip("the archives are extracted")
        with zipfile.ZipFile(zipped) as archive:
            members = sorted(m for m in archive.namelist() if f"/{name}/" in m and m[-4:] == ".png")
            if members:
                with archive.open(members[7]) as file:
                    image = Image.open(file)
                    assert image.mode == "1"
                    expected = np.array(image.resize((28, 28)))
    np.testing.assert_array_equal(class_images(splits.test, index)[7, :, :, 0] == 255, expected)
