"""Image files of every kind as arrays of one size."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reptile_jax.datasets import read_images
from reptile_jax.datasets.images import decode
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
