"""mini-ImageNet: 100 classes of 600 photographs, from any of the forms in which people have it."""

import csv
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reptile_jax.datasets import (
    ClassItems,
    ImageSplits,
    Resample,
    check_options,
    class_folders,
    grouped,
    misfits,
    read_images,
)
from reptile_jax.pickled import load_arrays
from reptile_jax.tasks import check_integers

# The class split of Ravi & Larochelle (2017), as in the metadata of the paper's released code.
_CLASSES = {
    "train": """
        n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867
        n02091831 n02101006 n02105505 n02108089 n02108551 n02108915 n02111277 n02113712 n02120079
        n02165456 n02457408 n02606052 n02687172 n02747177 n02795169 n02823428 n02966193 n03017168
        n03047690 n03062245 n03207743 n03220513 n03337140 n03347037 n03400231 n03476684 n03527444
        n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472 n04243546
        n04251144 n04258138 n04275548 n04296562 n04389033 n04435653 n04443257 n04509417 n04515003
        n04596742 n04604644 n04612504 n06794110 n07584110 n07697537 n07747607 n09246464 n13054560
        n13133613""".split(),
    "val": """
        n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370
        n03417042 n03535780 n03584254 n03770439 n03773504 n03980874 n09256479""".split(),
    "test": """
        n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484
        n02871525 n03127925 n03146219 n03272010 n03544143 n03775546 n04146614 n04149813 n04418357
        n04522168 n07613480""".split(),
}


def load_mini_imagenet(
    folder: str | Path,
    *,
    size: int = 84,
    resample: Resample = "nearest",
    num_classes: tuple[int, int, int] = (64, 16, 20),
    images_per_class: int = 600,
) -> ImageSplits:
    """mini-ImageNet (Vinyals et al. 2016, split of Ravi & Larochelle 2017), 100 classes of 600.

    `folder` is in one of these forms, and the first that is found is read:

      train/, val/, test/    each with one folder of images per class, as the paper's code has it
      train.csv, val.csv, test.csv    with columns `filename,label`, the files in images/
      mini-imagenet-cache-{train,val,test}.pkl    dicts of `image_data` and `class_dict`
      miniImageNet_category_split_{train_phase_train,val,test}.pickle    `data` and `labels`
      n01532829/, n01558993/, ...    one folder per class, split here by the published lists

    Pickles are read without executing what they may contain: arrays and plain containers only.
    Pickled images keep the scaling they were made with, usually an anti-aliased one, which shifts
    accuracies a little from the paper's.

    Args:
      folder: see above.
      size: side of the images in pixels; pickled images must have it already.
      resample: filter for image files. The paper's code calls `resize((84, 84))` under Pillow 4,
        where the default was "nearest"; Pillow 7 and later would take "bicubic".
      num_classes: how many classes training, validation and test must have.
      images_per_class: how many images every class must have.

    Raises:
      FileNotFoundError: if none of the forms, or not all of one, is in `folder`.
      ValueError: for wrong counts (every class at fault is named), and for damaged files.
    """
    folder = Path(folder)
    check_options(size, resample=resample)
    check_integers(images_per_class=images_per_class)
    if not isinstance(num_classes, tuple | list) or len(num_classes) != 3:
        raise TypeError(f"num_classes is (training, validation, test), got {num_classes!r}.")
    parts = _mini_imagenet_parts(folder, size, resample)
    for (split, (classes, _)), expected in zip(parts.items(), num_classes, strict=True):
        if len(classes) != expected:
            raise ValueError(
                f"the {split} split in {folder} has {len(classes)} classes, expected {expected}."
            )
        if wrong := misfits(classes, lambda number: number == images_per_class):
            raise ValueError(
                f"every class must have {images_per_class} images, but in the {split} split in "
                f"{folder} these have other numbers: {wrong}."
            )
    train, validation, test = (grouped(*part) for part in parts.values())
    return ImageSplits(train[0], test[0], train[1], test[1], validation[0], validation[1])


def _mini_imagenet_parts(
    folder: Path, size: int, resample: Resample
) -> dict[str, tuple[ClassItems, Callable]]:
    """For "train", "val" and "test": the classes' items, and what turns items into images."""

    def paths(items: list[Path]) -> np.ndarray:
        return read_images(items, size=size, resample=resample)

    splits = list(_CLASSES)
    if (folder / "train").is_dir():
        return {split: (class_folders(folder / split), paths) for split in splits}
    if (folder / "train.csv").exists():
        return {split: (_csv_classes(folder, split), paths) for split in splits}
    if (folder / "mini-imagenet-cache-train.pkl").exists():
        return {
            split: _pickled_part(folder / f"mini-imagenet-cache-{split}.pkl", size)
            for split in splits
        }
    if (folder / "miniImageNet_category_split_train_phase_train.pickle").exists():
        phases = {"train": "train_phase_train"}
        return {
            split: _pickled_part(
                folder / f"miniImageNet_category_split_{phases.get(split, split)}.pickle", size
            )
            for split in splits
        }
    found = class_folders(folder) if folder.is_dir() else {}
    if not any(re.fullmatch(r"n\d{8}", name) for name in found):
        raise FileNotFoundError(
            f"no mini-ImageNet in {folder}: looked for folders train/, val/ and test/ of class "
            "folders; for train.csv, val.csv and test.csv beside images/; for mini-imagenet-cache-"
            "{train,val,test}.pkl; for miniImageNet_category_split_{train_phase_train,val,test}"
            ".pickle; and for 100 folders named n01532829 and so on. ImageNet's licence does not "
            "let us offer a download."
        )
    missing = [name for names in _CLASSES.values() for name in names if name not in found]
    if missing:
        raise FileNotFoundError(f"{folder} lacks the mini-ImageNet classes {', '.join(missing)}.")
    return {
        split: ({name: found[name] for name in names}, paths) for split, names in _CLASSES.items()
    }


def _csv_classes(folder: Path, split: str) -> dict[str, list[Path]]:
    """Label → image files in the order of the CSV file, labels sorted."""
    classes = defaultdict(list)
    path = folder / f"{split}.csv"
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}.") from error
    if not {"filename", "label"} <= set(columns):
        raise ValueError(
            f"{path} must have the columns filename and label, it has {list(columns)}."
        )
    for number, row in enumerate(rows, 1):
        if not row["filename"] or not row["label"]:
            raise ValueError(f"{path} is damaged: its row {number} lacks a filename or a label.")
        classes[row["label"]].append(folder / "images" / row["filename"])
    return dict(sorted(classes.items()))


def _pickled_part(path: Path, size: int) -> tuple[dict[str, np.ndarray], Callable]:
    """Class name → indices into the pickled images, and what takes them from there."""
    content = load_arrays(path)
    if not isinstance(content, dict):
        content = {}
    images = content.get("image_data", content.get("data"))
    if not isinstance(images, np.ndarray) or not ("class_dict" in content or "labels" in content):
        raise ValueError(
            f"{path} must hold a dict with an array `image_data` and `class_dict`, or `data` and "
            f"`labels`; it has {list(content)[:10]}."
        )
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"the images in {path} must be uint8 [images, {size}, {size}, 3], they are "
            f"{images.dtype} {list(images.shape)}."
        )
    classes = _pickled_classes(path, content, len(images))
    return dict(sorted(classes.items())), lambda indices: images[np.asarray(indices)]


def _pickled_classes(path: Path, content: dict, num_images: int) -> dict[str, np.ndarray]:
    """Class name → indices of its images, each one of the images that there are."""
    damaged = lambda what: ValueError(f"{path} is damaged: {what}.")
    if "class_dict" in content:
        if not isinstance(content["class_dict"], dict):
            raise damaged("its class_dict is not a dict")
        classes = {}
        for name, which in content["class_dict"].items():
            if (numbers := _integers(which)) is None:
                raise damaged(f"its class_dict gives class {name} no list of image numbers")
            classes[str(name)] = numbers
    else:
        labels, names = _integers(content["labels"]), content.get("catname2label", {})
        if labels is None or not isinstance(names, dict):
            raise damaged("its labels are not integers, or its catname2label is not a dict")
        names = {
            label: name for name, label in names.items() if isinstance(label, int | np.integer)
        }
        classes = {
            str(names.get(label, label)): np.flatnonzero(labels == label)
            for label in np.unique(labels).tolist()
        }
    for which in classes.values():
        if which.size and not 0 <= which.min() <= which.max() < num_images:
            raise damaged(f"its classes name other images than the {num_images} that it holds")
    return classes


def _integers(values: Any) -> np.ndarray | None:
    """A list or array of integers as an array `[values]`; None if it is anything else."""
    if not isinstance(values, np.ndarray):
        is_list = isinstance(values, list | tuple | range)
        if not is_list or not all(isinstance(value, int | np.integer) for value in values):
            return None
        if not all(abs(value) < 2**63 for value in values):
            return None
        return np.array(values, np.int64)
    return values if values.ndim == 1 and values.dtype.kind in "iu" else None
