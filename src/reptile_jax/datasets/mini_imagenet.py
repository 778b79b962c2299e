"""mini-ImageNet: 100 classes of 600 photographs, from any of the usual files."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from reptile_jax._files import open_file
from reptile_jax._values import check_integers
from reptile_jax.datasets.image_folder import (
    ClassItems,
    ImageSplits,
    class_folders,
    grouped,
    misfits,
)
from reptile_jax.datasets.images import Resample, check_options, listed, read_images
from reptile_jax.datasets.pickles import load_arrays

_LARGEST_TABLE = 2**22  # bytes of a CSV file; the official ones have 1.2 MB

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
    """Loads mini-ImageNet (Vinyals et al. 2016, split of Ravi & Larochelle 2017).

    `folder` contains one of these, and the first one found is read:

      train/, val/, test/    each with one folder of images per class, as in the paper's code
      train.csv, val.csv, test.csv    with columns `filename,label`, and the files in images/
      mini-imagenet-cache-{train,val,test}.pkl    dicts of `image_data` and `class_dict`
      miniImageNet_category_split_{train_phase_train,val,test}.pickle    `data` and `labels`
      n01532829/, n01558993/, ...    one folder per class, split here by the published lists

    Pickles are read without executing code: arrays and plain containers only. Pickled images are
    already scaled, usually with anti-aliasing, which shifts accuracies a little from the paper's.

    Args:
      folder: see above.
      size: side of the images in pixels; pickled images must already have this size.
      resample: filter for image files. The paper's code calls `resize((84, 84))` under Pillow 4,
        where the default was "nearest"; in Pillow 7 and later it is "bicubic".
      num_classes: how many classes training, validation and test must have.
      images_per_class: how many images every class must have.

    Returns:
      Images `[images, size, size, 3]`, classes sorted by name.

    Raises:
      FileNotFoundError: if `folder` contains none of these, or not all of one.
      TypeError: for `num_classes` other than three numbers.
      ValueError: for bad arguments, wrong numbers of classes or images, and damaged files.
    """
    folder = Path(folder)
    check_options(size, resample=resample)
    check_integers(images_per_class=images_per_class)
    if not isinstance(num_classes, tuple | list) or len(num_classes) != 3:
        raise TypeError(f"num_classes is (training, validation, test), got {num_classes!r}.")
    parts = _mini_imagenet_parts(folder, size, resample)
    for (split, (classes, _)), expected in zip(parts.items(), num_classes, strict=True):
        problem = None
        if len(classes) != expected:
            problem = f"has {len(classes)} classes, expected {expected}"
        elif wrong := misfits(classes, lambda number: number == images_per_class):
            problem = (
                f"must have {images_per_class} images in every class, but these have other "
                f"numbers: {wrong}"
            )
        if problem:
            raise ValueError(f"the {split} split in {folder} {problem}.")
    train, validation, test = (grouped(*part) for part in parts.values())
    return ImageSplits(train[0], test[0], train[1], test[1], validation[0], validation[1])


def _mini_imagenet_parts(
    folder: Path, size: int, resample: Resample
) -> dict[str, tuple[ClassItems, Callable]]:
    """For "train", "val" and "test": the classes' items, and a function from items to images."""

    def paths(items: list[Path]) -> np.ndarray:
        return read_images(items, size=size, resample=resample)

    splits = list(_CLASSES)
    if (folder / "train").is_dir():
        return {split: (class_folders(folder / split), paths) for split in splits}
    if (folder / "train.csv").exists():
        listed_paths = lambda names: paths([folder / "images" / name for name in names])
        return {split: (_csv_classes(folder, split), listed_paths) for split in splits}
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
    missing = [name for names in _CLASSES.values() for name in names if name not in found]
    problem = None
    if not any(re.fullmatch(r"n\d{8}", name) for name in found):
        problem = (
            f"no mini-ImageNet in {folder}: looked for folders train/, val/ and test/ of class "
            "folders; for train.csv, val.csv and test.csv beside images/; for mini-imagenet-cache-"
            "{train,val,test}.pkl; for miniImageNet_category_split_{train_phase_train,val,test}"
            ".pickle; and for 100 folders named n01532829 and so on. ImageNet's licence does not "
            "let us offer a download."
        )
    elif missing:
        problem = f"{folder} lacks the mini-ImageNet classes {listed(missing)}."
    if problem:
        raise FileNotFoundError(problem)
    return {
        split: ({name: found[name] for name in names}, paths) for split, names in _CLASSES.items()
    }


def _csv_classes(folder: Path, split: str) -> dict[str, list[str]]:
    """Label → names of the image files in the order of the CSV file, labels sorted."""
    classes, problem = defaultdict(list), None
    path = folder / f"{split}.csv"
    try:
        with open_file(path, _LARGEST_TABLE) as file:
            rows = filter(None, csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline="")))
            columns = next(rows, [])
            if {"filename", "label"} <= set(columns):
                name, label = columns.index("filename"), columns.index("label")
                last = max(name, label)
                for number, row in enumerate(rows, 1):
                    if len(row) <= last or not row[name] or not row[label]:
                        problem = f"is damaged: its row {number} lacks a filename or a label"
                        break
                    classes[row[label]].append(row[name])
            else:
                problem = f"must have the columns filename and label, it has {listed(columns)}"
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"cannot read {path}: {error}.") from error
    if problem:
        raise ValueError(f"{path} {problem}.")
    return dict(sorted(classes.items()))


def _pickled_part(path: Path, size: int) -> tuple[dict[str, np.ndarray], Callable]:
    """Class name → indices into the pickled images, and a function from indices to images."""
    content = load_arrays(path)
    if not isinstance(content, dict):
        content = {}
    images = content.get("image_data", content.get("data"))
    classes, problem = {}, None
    if not isinstance(images, np.ndarray) or not ("class_dict" in content or "labels" in content):
        problem = (
            f"{path} must contain a dict with an array `image_data` and `class_dict`, or `data` "
            f"and `labels`; it has {list(content)[:10]}."
        )
    elif images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        problem = (
            f"the images in {path} must be uint8 [images, {size}, {size}, 3], they are "
            f"{images.dtype} {list(images.shape)}."
        )
    else:
        make = _classes_by_name if "class_dict" in content else _classes_by_label
        classes, damage = make(content)
        if any(
            which.size and not 0 <= which.min() <= which.max() < len(images)
            for which in classes.values()
        ):
            damage = f"its classes list images outside the {len(images)} in the file"
        if damage:
            problem = f"{path} is damaged: {damage}."
    if problem:
        raise ValueError(problem)
    return dict(sorted(classes.items())), lambda indices: images[np.asarray(indices)]


def _classes_by_name(content: dict) -> tuple[dict[str, np.ndarray], str | None]:
    """From `class_dict`: class name → indices of its images, and what is wrong if anything is."""
    if not isinstance(content["class_dict"], dict):
        return {}, "its class_dict is not a dict"
    classes = {}
    for name, values in content["class_dict"].items():
        if (indices := _integers(values)) is None:
            return {}, f"its class_dict does not give class {name} a list of image numbers"
        classes[str(name)] = indices
    return classes, None


def _classes_by_label(content: dict) -> tuple[dict[str, np.ndarray], str | None]:
    """From `labels`: class name → indices of its images, and what is wrong if anything is."""
    labels, names = _integers(content["labels"]), content.get("catname2label", {})
    if labels is None or not isinstance(names, dict):
        return {}, "its labels are not integers, or its catname2label is not a dict"
    names = {label: name for name, label in names.items() if isinstance(label, int | np.integer)}
    classes = {
        str(names.get(label, label)): np.flatnonzero(labels == label)
        for label in np.unique(labels).tolist()
    }
    return classes, None


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
