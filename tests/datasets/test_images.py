"""Image files of every kind as arrays of one size."""

import io
import os
import struct
import subprocess
import sys
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from reptile_jax.datasets import read_images
from reptile_jax.datasets.images import decode, endings, listed
from tests.attacks import cheap, no_hang, png, png_chunk, special_files, tiff
from tests.image_files import encoded, encoded_array, noise, saved
from tests.nonsense import answered, damaged, fuzz


def test_read_images_keeps_order_shape_and_values(tmp_path):
    arrays = [noise(6, 6, 3, seed=seed) for seed in range(20)]
    paths = [saved(array, tmp_path / f"{seed}.png") for seed, array in enumerate(arrays)]
    images = read_images(paths[::-1], size=6)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, np.stack(arrays[::-1]))
    assert read_images(map(str, paths), size=3, color="grey").shape == (20, 3, 3, 1)
    np.testing.assert_array_equal(read_images(paths[3], size=6), arrays[3][None])


def test_read_images_filters(tmp_path):
    array = noise(20, 30, 3)
    path = saved(array, tmp_path / "a.png")
    for name in ("nearest", "bilinear", "bicubic", "lanczos"):
        expected = Image.fromarray(array).resize((8, 8), Image.Resampling[name.upper()])
        np.testing.assert_array_equal(read_images([path], size=8, resample=name)[0], expected)
    np.testing.assert_array_equal(
        read_images([path], size=8), read_images([path], size=8, resample="bilinear")
    )


def test_read_images_honours_exif_orientation(tmp_path):
    array = noise(8, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the image 90 degrees clockwise
    path = saved(array, tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_images([path], size=8)[0], np.rot90(array, -1))


def test_read_images_of_every_mode(tmp_path):
    grey = noise(5, 5)
    grey[0, :3] = 0, 127, 255
    alpha = np.where(grey > 127, 255, 0).astype(np.uint8)
    on_white = np.where(alpha == 255, grey, 255)
    saved(np.dstack([grey, alpha]), tmp_path / "LA.png")
    saved(np.dstack([grey, grey, grey, alpha]), tmp_path / "RGBA.png")
    saved(grey.astype(np.uint16) * 256 + 7, tmp_path / "I16.png")
    palette = Image.fromarray(grey).convert("P")
    palette.save(tmp_path / "P.png")
    palette.save(tmp_path / "PA.png", transparency=bytes([0]))  # colour 0 alone is transparent
    expected = {
        "LA": on_white,
        "RGBA": on_white,
        "I16": grey,
        "P": grey,
        "PA": np.where(grey == 0, 255, grey),
    }
    for name, values in expected.items():
        image = read_images([tmp_path / f"{name}.png"], size=5, color="grey")[0, :, :, 0]
        np.testing.assert_allclose(image.astype(int), values, atol=1, err_msg=name)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", "cut"])
def test_read_images_names_the_file_that_cannot_be_decoded(tmp_path, content):
    good = saved(noise(40, 40, 3), tmp_path / "good.jpg")
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(good.read_bytes()[:-300] if content == "cut" else content)
    with pytest.raises(ValueError, match=r"cannot read the image .*bad\.jpg: "):
        read_images([good, bad, good], size=8)


def test_all_files_that_cannot_be_decoded_are_counted_and_the_first_named(tmp_path):
    good = saved(noise(4, 4, 3), tmp_path / "good.png")
    bad = [tmp_path / f"bad{number}.png" for number in range(5)]
    for path in bad[:4]:
        path.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"cannot read 5 of 7 images: ") as caught:
        read_images([good, *bad, good], size=4)
    message = str(caught.value)
    assert [f"bad{n}.png" in message for n in range(5)] == [True, True, True, False, False]
    assert message.endswith("bad2.png: Pillow does not recognise it as an image; and 2 more")


def test_a_list_is_cut_after_a_few_names():
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(n) for n in range(5000)]) == "0, 1, 2, 3, 4 and 4,995 more"


def test_every_still_image_that_pillow_itself_decodes_has_its_ending(tmp_path):
    known = endings()
    usual = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
    assert usual | {".jfif", ".jpe", ".tga", ".dib", ".jp2", ".mpo", ".ico", ".psd"} < known
    assert not known & {".eps", ".ps", ".wmf", ".emf", ".pdf", ".mpg", ".mpeg", ".h5", ".grib"}
    if features.check("avif"):
        assert ".avif" in known
    array = np.full((8, 8, 3), 100, np.uint8)
    for ending in (".jfif", ".tga", ".dib", ".pcx", ".jp2"):
        path = saved(array, tmp_path / f"a{ending}")
        np.testing.assert_allclose(read_images([path], size=8)[0], array, atol=1)


def eps():
    """A program for Ghostscript."""
    file = io.BytesIO()
    Image.fromarray(noise(4, 4, 3)).save(file, "EPS")
    return file.getvalue()


def iptc(content):
    """A file around another of any format."""
    fields = {
        (3, 60): b"\1\0",
        (3, 20): b"\0\4",
        (3, 30): b"\0\4",
        (3, 120): b"\5",
        (8, 10): content,
    }
    head = lambda kind, data: b"\x1c" + bytes(kind) + struct.pack(">H", len(data))
    return b"".join(head(kind, data) + data for kind, data in fields.items())


@pytest.mark.attack
@pytest.mark.parametrize("content", [eps(), iptc(eps())], ids=["eps", "in iptc"])
@pytest.mark.parametrize("name", ["a.png", "a.iim", "a.eps"])
def test_no_other_program_is_run_for_a_file_whatever_its_name(tmp_path, monkeypatch, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    run = lambda *_, **__: pytest.fail("a program runs")
    monkeypatch.setattr(subprocess, "check_call", run)
    with pytest.raises(ValueError, match="does not recognise it as an image"):
        read_images([path], size=4)


@pytest.mark.attack
def test_pipes_devices_and_endless_files_are_refused_before_they_are_opened(tmp_path):
    paths = special_files(tmp_path, ".png")
    whole = f"cannot read {'the image' if len(paths) == 1 else f'{len(paths)} of'} .*pipe"
    with no_hang(), pytest.raises(ValueError, match=rf"{whole}\.png is a named pipe: give a reg"):
        read_images(paths, size=4)
    for path in paths[1:]:
        with no_hang(), pytest.raises(ValueError, match=r"is a device|is empty: give the whole"):
            read_images([path], size=4)


@pytest.mark.attack
def test_a_file_too_large_for_a_picture_is_refused_before_it_is_opened(tmp_path):
    path = tmp_path / "a.webp"
    path.write_bytes(b"RIFF\xff\xff\xff\x7fWEBPVP8 ")
    os.truncate(path, 10 * 2**30)  # which takes no room on the disk
    with cheap(), pytest.raises(ValueError, match=r"has 10,737,418,240 bytes, expected at most 67"):
        read_images([path], size=4)


def jpeg(width, height, **options):
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "JPEG", **options)
    return file.getvalue()


def many_scans():
    """A progressive JPEG file of 149 kB, which would take 23 s."""
    data = jpeg(4000, 3000, progressive=True)
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * 3000 + data[-2:]


def much_exif():
    """A JPEG file whose EXIF data, of 60 MB, takes 17 s to join."""
    part = b"Exif\0\0" + bytes(65_000)
    part = b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part
    data = jpeg(8, 8)
    return data[:2] + part * 900 + data[2:]


def many_tags():
    """60,000 tags, each of which says that its data are most of the file."""
    return tiff([(number, 1, 4_000_000, 0) for number in range(1000, 61_000)], bytes(4_000_000))


def large_tile():
    """A picture of 8 x 8 pixels in a tile of 900 million."""
    data = zlib.compress(bytes(10_000_000))
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 322: 30_000, 323: 30_000, 325: len(data)}
    tags[324] = 8 + 2 + 12 * 9 + 4
    return tiff([(number, 4, 1, value) for number, value in tags.items()], data)


def one_strip():
    """Pixels of four numbers of 16 bits, all in one strip, which libtiff decodes at once."""
    data = zlib.compress(bytes(8000 * 600 * 8))
    tags = {256: 8000, 257: 6000, 258: 16, 259: 8, 262: 1, 278: 6000, 279: len(data)}
    tags[273] = 8 + 2 + 12 * 8 + 4
    return tiff([(number, 4, 1, value) for number, value in tags.items()], data)


def icon(content):
    head = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22)
    return head + content


def dds(side):
    """Pixels that Pillow decodes in Python, a microsecond each; the last rows lack."""
    masks = struct.pack("<II4sIIIII", 32, 0x40, b"", 24, 0xFF0000, 0xFF00, 0xFF, 0)
    head = struct.pack("<4sIIII56x", b"DDS ", 124, 0x1007, side, side)
    return head + masks + bytes(20) + bytes(side * (side - 10) * 3)


MANY_TEXTS = [png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20)))] * 70
BOMBS = {
    "a png of 177 million pixels": (
        lambda: png(13_300, 13_300, color=0),
        "more than 51,000,000 pixels",
    ),
    "a png of 48 million that is cut": (lambda: png(8000, 6000, lacks=9000), "truncated"),
    "with transparency": (lambda: png(8000, 6000, lacks=9000, color=6), "truncated"),
    "texts in a png": (lambda: png(8, 8, extra=b"".join(MANY_TEXTS)), "text chunks"),
    "a png in an icon": (lambda: icon(png(13_300, 13_300, color=0)), "more than 51,000,000 pixels"),
    "scans": (many_scans, "3010 scans and EXIF parts, expected at most 60"),
    "EXIF data": (much_exif, "90[01] scans and EXIF parts"),
    "a progressive jpeg": (
        lambda: jpeg(8000, 6000, progressive=True),
        "it has 48,000,000 pixels, expected at most 24,000,000 of its kind: scale it down",
    ),
    "tags": (many_tags, "does not recognise"),
    "a tile": (large_tile, "900,000,000 pixels"),
    "a strip": (one_strip, "48,000,000 pixels, expected at most 24,000,000"),
    "pixels in Python": (lambda: dds(4000), "16,000,000 pixels, expected at most 1,000,000"),
    "few of them": (lambda: dds(990), "not enough image data"),
    "numbers as text": (lambda: b"P2\n4000 4000\n255\n" + b"1 " * 900_000, "at most 1,000,000 "),
}


@pytest.mark.attack
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_picture_is_refused_by_the_sizes_that_it_declares(tmp_path, bomb):
    make, message = BOMBS[bomb]
    path = tmp_path / "a.png"
    path.write_bytes(make())
    with cheap(), pytest.raises(ValueError, match=rf"cannot read the image .*a\.png: .*{message}"):
        read_images([path], size=8)


@pytest.mark.attack
def test_large_pictures_wait_for_each_other(tmp_path, monkeypatch):
    """Each of them takes two fifths of the memory: two at a time, however many processors."""
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    now, most, transpose = [], [], ImageOps.exif_transpose

    def slow(*arguments, **options):
        now.append(1)
        time.sleep(0.05)
        most.append(len(now))
        transpose(*arguments, **options)
        now.pop()

    monkeypatch.setattr(ImageOps, "exif_transpose", slow)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path in paths:
        path.write_bytes(png(5000, 4000, color=0))
    read_images(paths, size=8)
    assert max(most) == 2


def test_reading_leaves_the_limit_of_pillow_and_the_filters_of_warnings(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    filters = list(warnings.filters)
    path = saved(noise(4, 4, 3), tmp_path / "a.png")
    assert read_images([path], size=4).shape == (1, 4, 4, 3)
    assert Image.MAX_IMAGE_PIXELS == 7
    assert warnings.filters == filters


def test_large_photographs_are_read(tmp_path):
    """Of 50 million pixels, as telephones take them, and progressive of 24 million."""
    (tmp_path / "a.jpg").write_bytes(jpeg(8160, 6120))
    (tmp_path / "b.jpg").write_bytes(jpeg(6000, 4000, progressive=True))
    images = read_images([tmp_path / "a.jpg", tmp_path / "b.jpg"], size=4, resample="nearest")
    assert not images.any()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_greys_of_any_depth_in_16_bit_files_keep_their_contrast(bits, kind):
    grey = noise(6, 6)
    grey[0, 0] = 255
    file = encoded_array(grey.astype(np.uint16) * 2 ** (bits - 8), kind)
    image = decode(io.BytesIO(file), "x", 6, "grey", "nearest")
    np.testing.assert_array_equal(image[..., 0], grey)


def test_the_depth_that_a_file_declares_counts_whatever_its_values():
    dark = noise(8, 8) // 16  # of 255
    maximum_4095 = b"P5 8 8 4095\n" + (dark.astype(int) * 16).astype(">u2").tobytes()
    for file in (maximum_4095, tiff_of_12_bits(dark.astype(int) * 16)):
        image = decode(io.BytesIO(file), "x", 8, "grey", "nearest")
        np.testing.assert_allclose(image[..., 0].astype(int), dark, atol=1)


def tiff_of_12_bits(grey):
    """Pillow reads such files, and does not write them."""
    height, width = grey.shape
    bits = "".join(f"{value:012b}" for value in grey.flat)
    pixels = int(bits, 2).to_bytes(len(bits) // 8)
    short, long = 3, 4  # the types of the fields
    fields = [
        *((256, short, width), (257, short, height), (258, short, 12), (259, short, 1)),
        *((262, short, 1), (273, long, 122), (277, short, 1), (278, short, height)),
        (279, long, len(pixels)),
    ]
    entries = [struct.pack("<HHII", number, kind, 1, value) for number, kind, value in fields]
    header = struct.pack("<2sHIH", b"II", 42, 8, len(fields))
    return header + b"".join(entries) + bytes(4) + pixels


def test_read_images_checks_its_arguments(tmp_path):
    path = saved(noise(4, 4, 3), tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least one file"):
        read_images([], size=8)
    with pytest.raises(ValueError, match="size is at least 1, got 0"):
        read_images([path], size=0)
    with pytest.raises(ValueError, match=r"color must be one of .* got 'blue'"):
        read_images([path], size=8, color="blue")
    with pytest.raises(ValueError, match=r"resample must be one of .* got 'box'"):
        read_images([path], size=8, resample="box")
    with pytest.raises(ValueError, match=r"cannot read the image .*none\.png: .*No such file"):
        read_images([tmp_path / "none.png"], size=8)


def test_without_pillow_the_error_names_the_extra(tmp_path, monkeypatch):
    path = saved(noise(4, 4, 3), tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r'pip install "reptile-jax\[cli\]"'):
        read_images([path], size=4)


def test_importing_the_module_does_not_import_pillow():
    code = "import sys, reptile_jax.datasets; sys.exit('PIL' in sys.modules)"
    path = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


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
        image = decode(io.BytesIO(data), "x", 5, color, "nearest")
        assert image.shape == (5, 5, {"rgb": 3, "grey": 1}[color])
        assert image.dtype == np.uint8


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 3), 0.5, np.float32), "floating-point numbers of unknown range"),
        (np.full((3, 3), 70_000, np.int32), "more than 16 bits"),
        (np.full((3, 3), -1, np.int32), "more than 16 bits"),
    ],
)
def test_pixels_without_a_meaning_are_refused(array, message):
    with pytest.raises(ValueError, match=f"cannot read the image x: .*{message}"):
        decode(io.BytesIO(encoded_array(array, "TIFF")), "x", 3, "grey", "nearest")
