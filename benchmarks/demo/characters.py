"""The Omniglot characters of the demo's page, in one file with their licence."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

import reptile_jax as rj

SIZE = 105  # pixels of the originals
DRAWINGS = 3  # of each character: an example, and queries by other hands
OF_EACH_ALPHABET = 2
FILE = Path(__file__).parents[2] / "src/reptile_jax/app/demo/page/omniglot.json"
ABOUT = (
    "Characters of Omniglot's evaluation alphabets that are among the 423 test characters of the "
    "paper's split: no weights of reptile_jax were trained on them. Lake, Salakhutdinov & "
    "Tenenbaum 2015, https://github.com/brendenlake/omniglot"
)
LICENCE = """\
The MIT License (MIT)

Copyright (c) 2015 Brenden Lake

Permission is hereby granted, free of charge, to any person obtaining a copy of this
software and associated documentation files (the "Software"), to deal in the Software
without restriction, including without limitation the rights to use, copy, modify,
merge, publish, distribute, sublicense, and/or sell copies of the Software, and to
permit persons to whom the Software is furnished to do so, subject to the following
conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED,
INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR
PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE
LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT
OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR
OTHER DEALINGS IN THE SOFTWARE.
"""


def main(data: Path, out: Path = FILE) -> None:
    """Writes the characters.

    Args:
      data: the folder with Omniglot's two zip files.
      out: the file.
    """
    splits = rj.datasets.load_omniglot(data, rotations=False, size=SIZE)
    evaluation = _evaluation_alphabets(data)
    by_alphabet: dict[str, list[int]] = {}
    for index, name in enumerate(splits.test_names):
        by_alphabet.setdefault(name.split("/")[0], []).append(index)
    chosen = [
        index
        for alphabet in sorted(evaluation & by_alphabet.keys())
        for index in sorted(by_alphabet[alphabet], key=lambda i: splits.test_names[i])[
            :OF_EACH_ALPHABET
        ]
    ]
    tiles = [
        np.hstack(splits.test.images[start : start + DRAWINGS, ..., 0])
        for start in (int(splits.test.starts[index]) for index in chosen)
    ]
    fields = {
        "about": ABOUT,
        "licence": LICENCE,
        "size": SIZE,
        "drawings": DRAWINGS,  # a row of the picture is a character, a column one drawing of it
        "names": [splits.test_names[index] for index in chosen],
        "picture": _png(np.vstack(tiles)),
    }
    out.write_text(json.dumps(fields, indent=1) + "\n")
    print(f"{len(chosen)} characters, {out.stat().st_size / 1000:.0f} kB, in {out}")


def _evaluation_alphabets(data: Path) -> set[str]:
    splits = rj.datasets.load_omniglot(data, split="background", rotations=False)
    return {name.split("/")[0] for name in splits.test_names}


def _png(pixels: np.ndarray) -> str:
    """Black and white pixels `[rows, columns]` as the address of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    tyro.cli(main)
