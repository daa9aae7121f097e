"""Small image folders and data sets, and configurations of runs of a second or two."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from halonet.classification.config import TrainingConfig
from halonet.classification.recipes import get_recipe
from halonet.data.dataset import ImageDataset
from halonet.data.splits import Split
from halonet.models.classifier import Preprocessing
from halonet.training.config import RunConfig

COLORS = ("red", "green", "blue")
SMALL_MODEL = {
    "layers": [1, 1, 1, 1],
    "base_width": 8,
    "heads": [1, 1, 1, 1],
    "stem_width": 8,
    "block_size": 2,
    "halo_size": 1,
}


def draw_folder(folder: Path, *, classes: int = 2, images: int = 12) -> Path:
    """A folder for each class, of grey images with a rectangle in the class's colour."""
    for color in COLORS[:classes]:
        (folder / color).mkdir(parents=True)
        for index in range(images):
            image = Image.new("RGB", (40, 40 + index), "gray")
            ImageDraw.Draw(image).rectangle((4 + index, 8, 22 + index, 30), fill=color)
            image.save(folder / color / f"{index}.png")
    return folder


def make_grey_dataset(
    folder: Path, levels: list[int | None], labels: Any, **options: Any
) -> ImageDataset:
    """An image of each level of grey, from 0 to 1 as the model takes it; None can't be read."""
    paths = []
    for index, level in enumerate(levels):
        paths.append(folder / f"{index}.png")
        if level is None:
            paths[-1].write_bytes(b"rubbish")
        else:
            Image.new("RGB", (32, 32), (level,) * 3).save(paths[-1])
    preprocessing = Preprocessing(32, 1.0, (0.0,) * 3, (1.0,) * 3)
    return ImageDataset(Split(paths, labels), preprocessing, **options)


def small_config(folder: Path, **changes: Any) -> TrainingConfig:
    """Two epochs of four steps on a drawn folder of two classes."""
    fields = {
        "data": f"folder:{folder}",
        "validation_share": 0.25,
        "model_options": SMALL_MODEL,
        "image_size": 32,
        "batch_size": 4,
        "epochs": 2,
    }
    return dataclasses.replace(get_recipe("small"), **(fields | changes))


def make_words(config: RunConfig, output: Path) -> list[str]:
    """The options that train by a configuration."""
    fields = dataclasses.asdict(config)
    for group in ("augmentation", "detector"):
        fields |= {f"{group}.{name}": value for name, value in fields.pop(group, {}).items()}
    words = [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in fields.items()
        if value is not None
    ]
    return ["--output", str(output), *words]
