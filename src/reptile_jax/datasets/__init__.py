"""Image files as arrays, grouped by class."""

from reptile_jax._types import ImageClasses as ImageClasses
from reptile_jax.datasets.download import download_omniglot as download_omniglot
from reptile_jax.datasets.folders import class_folders as class_folders
from reptile_jax.datasets.folders import image_files as image_files
from reptile_jax.datasets.image_folder import ImageSplits as ImageSplits
from reptile_jax.datasets.image_folder import load_image_folder as load_image_folder
from reptile_jax.datasets.image_folder import split_classes as split_classes
from reptile_jax.datasets.images import read_images as read_images
from reptile_jax.datasets.mini_imagenet import load_mini_imagenet as load_mini_imagenet
from reptile_jax.datasets.omniglot import load_omniglot as load_omniglot
