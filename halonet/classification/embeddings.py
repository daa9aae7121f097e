"""Embeddings in files, and the images nearest to one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from halonet.files import save_figure, write_atomically

COLUMNS = 6  # images in a row of a contact sheet


@dataclass(frozen=True)
class Neighbour:
    """An image and how like another one it is: its place in a list, and the cosine, -1 to 1."""

    index: int
    similarity: float


def find_similar(query: Tensor, embeddings: Tensor, count: int) -> list[Neighbour]:
    """The nearest of embeddings [images, features] to a query [features], by cosine."""
    similarities = F.normalize(embeddings, dim=1) @ F.normalize(query, dim=0)
    best = similarities.topk(min(count, len(similarities)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Neighbour(index, similarity) for index, similarity in pairs]


def check_embedding_file(path: Path) -> None:
    """Raise ValueError unless a file's name says how embeddings are written to it."""
    if path.suffix not in (".npz", ".parquet"):
        raise ValueError(f"output must end in .npz or .parquet, got {path}")
    if path.suffix == ".parquet":
        import pyarrow  # noqa: F401 - what is missing is said before the work


def write_embeddings(path: Path, names: Sequence[str], embeddings: Tensor) -> None:
    """Write embeddings [images, features] and the images' names, whole or not at all.

    A .npz file has the arrays `paths` and `embeddings`, float32; a .parquet file has the columns
    path and embedding.

    Raises:
        ValueError: another ending. ModuleNotFoundError: .parquet without pyarrow.
    """
    check_embedding_file(path)
    if path.suffix == ".npz":
        # A path's own file object: numpy would add another .npz to some names.
        def write(temporary: Path) -> None:
            with open(temporary, "wb") as file:
                np.savez(file, paths=np.array(names), embeddings=embeddings.numpy())

        write_atomically(path, write)
        return
    import pyarrow
    from pyarrow import parquet

    readable = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    values = pyarrow.array(embeddings.flatten().numpy())
    columns = pyarrow.FixedSizeListArray.from_arrays(values, embeddings.shape[1])
    table = pyarrow.table({"path": readable, "embedding": columns})
    write_atomically(path, lambda temporary: parquet.write_table(table, temporary))


def draw_neighbours(
    path: Path, query: Image.Image, neighbours: Sequence[tuple[Image.Image, float]]
) -> None:
    """A contact sheet: the query, then its neighbours with their similarities."""
    from matplotlib.figure import Figure

    panels: list[tuple[Any, str]] = [(query, "query")]
    panels += [(image, f"{similarity:.3f}") for image, similarity in neighbours]
    rows = -(-len(panels) // COLUMNS)
    figure = Figure((1.8 * COLUMNS, 2 * rows), dpi=110, layout="constrained")
    places = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axes in places:
        axes.set_axis_off()
    for axes, (image, title) in zip(places, panels, strict=False):
        axes.imshow(image.convert("RGB"))
        axes.set_title(title, fontsize=9)
    save_figure(figure, path)
