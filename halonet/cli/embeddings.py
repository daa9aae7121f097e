"""halonet embed | similar: images by their features."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halonet.cli.parser import CommandParser, fail, list_given_images, make_table, one_line
from halonet.devices import find_device
from halonet.models.pretrained import load_model

PURPOSES = {
    "embed": "write the pooled features of images to a file",
    "similar": "find the images most like one",
}

COUNT = 11  # of the nearest images


def embed_command(words: Sequence[str]) -> None:
    """Write the embeddings of images to a file."""
    options = make_embed_parser().parse_words(words)
    from halonet.classification.embeddings import check_embedding_file, write_embeddings
    from halonet.files import require_new_file
    from halonet.models.metadata import find_checkpoint

    device = find_device(options.device)
    output, checkpoint = Path(options.output), find_checkpoint(Path(options.checkpoint))
    check_embedding_file(output)
    require_new_file(output)
    paths = list_given_images(options.images)
    model = load_model(checkpoint).fuse().to(device)
    found, embeddings = _embed(model, paths)
    if found:
        write_embeddings(output, [str(path) for path in found], embeddings)
        print(f"{len(found)} embeddings of {embeddings.shape[1]} numbers: {output}")
    if len(found) < len(paths):
        fail(f"{len(paths) - len(found)} of {len(paths)} images can't be read", 1)


def similar_command(words: Sequence[str]) -> None:
    """Print the images most like one, and draw them."""
    parser = make_similar_parser()
    options = parser.parse_words(words)
    if options.count is not None and options.count < 1:
        parser.error(f"--count must be 1 or more, got {options.count}")
    from halonet.classification.embeddings import draw_neighbours, find_similar
    from halonet.data.pixels import read_image
    from halonet.files import check_picture_file, require_new_file
    from halonet.inference.images import take_one
    from halonet.models.metadata import find_checkpoint

    device = find_device(options.device)
    output = None if options.output is None else Path(options.output)
    if output is not None:
        check_picture_file(output)
        require_new_file(output)
    query, checkpoint = take_one(options.query), find_checkpoint(Path(options.checkpoint))
    image = read_image(query)
    paths = [path for path in list_given_images(options.images) if not _is_same(path, query)]
    count = options.count or COUNT
    if options.count is not None and count > len(paths):
        note = f"--count {count}: there are {len(paths)} images to compare with"
        print(f"halonet: {note}", file=sys.stderr)
    model = load_model(checkpoint).fuse().to(device)
    _, wanted = _embed(model, [query])
    found, embeddings = _embed(model, paths)
    if not found:
        raise ValueError(f"there is no image to compare {query} with")
    neighbours = find_similar(wanted[0], embeddings, count)
    entries: list[dict[str, Any]] = [
        {"image": str(found[one.index]), "similarity": round(one.similarity, 6)}
        for one in neighbours
    ]
    if output is not None:
        shown = [(read_image(found[one.index]), one.similarity) for one in neighbours]
        draw_neighbours(output, image, shown)
    if options.format == "json":
        print(json.dumps(entries, indent=2))
    else:
        rows = [[entry["image"], f"{entry['similarity']:.3f}"] for entry in entries]
        print(make_table(["image", "similarity"], rows))
        if output is not None:
            print(f"open {output}")
    if len(found) < len(paths):
        fail(f"{len(paths) - len(found)} of {len(paths)} images can't be read", 1)


def _embed(model: Any, paths: Sequence[Any]) -> tuple[list[Any], Any]:
    """The images that can be read, and their embeddings [images, features]."""
    import torch

    from halonet.classification.predict import embed

    found, rows = [], []
    for path, features in zip(paths, (row for _, row in embed(model, paths)), strict=True):
        if isinstance(features, str):
            print(f"halonet: {one_line(features)}", file=sys.stderr)
            continue
        found.append(path)
        rows.append(features)
    return found, torch.stack(rows) if rows else torch.empty(0, model.num_features)


def _is_same(path: Any, query: Any) -> bool:
    return (
        isinstance(path, Path)
        and isinstance(query, Path)
        and path.exists()
        and path.samefile(query)
    )


def make_embed_parser() -> CommandParser:
    """The options of `halonet embed`."""
    parser = CommandParser(prog="halonet embed", description=PURPOSES["embed"])
    parser.add_argument("checkpoint", type=str, help="a run folder, or a safetensors file")
    parser.add_images()
    parser.add_argument(
        "--output", type=str, required=True, help="a new file that ends in .npz or .parquet"
    )
    parser.add_device()
    return parser


def make_similar_parser() -> CommandParser:
    """The options of `halonet similar`."""
    parser = CommandParser(prog="halonet similar", description=PURPOSES["similar"])
    parser.add_argument("checkpoint", type=str, help="a run folder, or a safetensors file")
    parser.add_argument("query", type=str, help="an image, or its URL")
    parser.add_images()
    parser.add_argument("--count", type=int | None, help=f"images to show, {COUNT} by default")
    parser.add_argument(
        "--output", type=str | None, help="a new picture of them: .png, .svg or .pdf"
    )
    parser.add_device()
    parser.add_format()
    return parser
