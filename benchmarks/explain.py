"""Methods of explanation compared by deletion and insertion on held-out images.

    python benchmarks/explain.py runs/small --data folder:flowers --output benchmarks/results/NAME

explains, by each method, the predicted class of images spread evenly over the held-out ones. Two
rows don't look at the model: random order, and nearness to the image's centre, where photographers
put the object. A method that is no better than these says nothing about the model.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from halonet import Classifier, load_model
from halonet.cli.parser import make_table
from halonet.data.pixels import prepare_image
from halonet.data.sources import load_data
from halonet.explain.curves import find_probabilities, measure_curves
from halonet.explain.relevance import METHODS, measure_relevance
from halonet.files import write_text

CELL_SIZES = (1, 8)  # pixels on a side of what is deleted and inserted as a whole
Explainer = Callable[[Classifier, Tensor, int], Tensor]


def list_explainers() -> dict[str, Explainer]:
    """What is compared, by name."""
    explainers: dict[str, Explainer] = {}
    for method in METHODS:
        if method == "gradcam":
            for stage in (4, 3, 2, 1):
                explainers[f"gradcam, stage {stage}"] = partial(
                    measure_relevance, method=method, stage=stage
                )
        else:
            explainers[method] = partial(measure_relevance, method=method)
    return explainers | {"random order": order_at_random, "nearest the centre": order_by_centre}


def order_at_random(model: Classifier, image: Tensor, class_index: int) -> Tensor:
    """The same random order for every image."""
    return torch.rand(image.shape[1:], generator=torch.Generator().manual_seed(0))


def order_by_centre(model: Classifier, image: Tensor, class_index: int) -> Tensor:
    """Pixels nearest the centre first."""
    rows, columns = (torch.arange(size) - (size - 1) / 2 for size in image.shape[1:])
    return -(rows[:, None] ** 2 + columns**2)


def main() -> None:
    """Explain, measure, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--output", type=Path, help="folder of explain.json and explain.md")
    options = parser.parse_args()
    model = load_model(options.checkpoint).eval()
    sources = load_data(options.data).validation.sources
    chosen = [sources[index * len(sources) // options.images] for index in range(options.images)]
    images = [prepare_image(source, model.preprocessing, model.in_channels) for source in chosen]
    classes = [int(find_probabilities(model, image[None]).argmax()) for image in images]
    results = {}
    rows = []
    for name, explain in list_explainers().items():
        areas: list[list[float]] = []
        seconds = 0.0
        for image, class_index in zip(images, classes, strict=True):
            started = time.perf_counter()
            relevance = explain(model, image, class_index)
            seconds += time.perf_counter() - started
            found = []
            for cell_size in CELL_SIZES:
                curves = measure_curves(model, image, relevance, class_index, cell_size=cell_size)
                deletion, insertion = curves.deletion_area, curves.insertion_area
                found += [deletion, insertion, insertion - deletion]
            areas.append(found)
        means, errors = torch.tensor(areas).mean(0), torch.tensor(areas).std(0) / len(images) ** 0.5
        milliseconds = 1000 * seconds / len(images)
        results[name] = {
            "means": means.tolist(),
            "standard_errors": errors.tolist(),
            "milliseconds": milliseconds,
        }
        shown = [f"{mean:.2f} ± {error:.2f}" for mean, error in zip(means, errors, strict=True)]
        rows.append([name, *shown, f"{milliseconds:.0f}"])
        print(*rows[-1], flush=True)
    header = ["method"]
    for side in CELL_SIZES:
        header += [f"{area}, {side} px" for area in ("deletion", "insertion", "difference")]
    header.append("ms an image")
    print(make_table(header, rows))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        write_text(options.output / "explain.json", json.dumps(results, indent=1) + "\n")
        lines = [header, ["---"] * len(header), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        write_text(options.output / "explain.md", table + "\n")


if __name__ == "__main__":
    main()
