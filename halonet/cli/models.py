"""halonet models: the variants, with parameters and FLOPs."""

import json
import math
from collections.abc import Sequence
from typing import Any

from halonet.cli.parser import CommandParser, make_table, parse_number
from halonet.models.flops import count_flops
from halonet.models.timm_variants import TIMM_CHECKPOINTS
from halonet.models.variants import VARIANTS, TimmVariant

PURPOSE = "list the models with parameters and FLOPs"


def models_command(words: Sequence[str]) -> None:
    """Print the models that are within the limits."""
    parser = make_models_parser()
    options = parser.parse_words(words)
    most_parameters, most_flops = (
        _parse_limit(parser, name, options[name]) for name in ("max_parameters", "max_flops")
    )
    found: list[dict[str, Any]] = []
    for variant in VARIANTS.values():
        size = options.image_size or variant.image_size
        found.append(
            {
                "name": variant.name,
                "parameters": variant.parameters,
                "flops": count_flops(variant, size),
                "image_size": size,
                "source": variant.source,
            }
        )
    for name, checkpoint in TIMM_CHECKPOINTS.items():
        size = options.image_size or checkpoint.image_size
        flops = checkpoint.flops
        if size != checkpoint.image_size:  # counted on the model itself
            flops = count_flops(TimmVariant(name, size), size)
        found.append(
            {
                "name": name,
                "parameters": checkpoint.parameters,
                "flops": flops,
                "image_size": size,
                "source": f"timm, {checkpoint.tag}",
            }
        )
    largest = options.max_image_size or math.inf
    found = [
        entry
        for entry in found
        if (entry["parameters"] or 0) <= most_parameters
        and entry["flops"] <= most_flops
        and entry["image_size"] <= largest
    ]
    if options.format == "json":
        print(json.dumps(found, indent=2))
        return
    rows = [
        [
            entry["name"],
            f"{entry['parameters'] / 1e6:.2f}",
            f"{entry['flops'] / 1e9:.2f}",
            entry["image_size"],
            entry["source"],
        ]
        for entry in found
    ]
    print(make_table(["model", "parameters, M", "GFLOPs", "image", "source"], rows))
    print("FLOPs of one image, a multiply-add counting as two; parameters with 1000 classes.")


def _parse_limit(parser: CommandParser, name: str, text: str | None) -> float:
    try:
        return parse_number(text)
    except ValueError as error:
        parser.error(f"--{name}: {error}")


def make_models_parser() -> CommandParser:
    """The options of `halonet models`."""
    parser = CommandParser(prog="halonet models", description=PURPOSE)
    parser.add_argument("--max_parameters", type=str | None, help="the most parameters, as 10M")
    parser.add_argument("--max_flops", type=str | None, help="the most FLOPs, as 6G")
    parser.add_argument(
        "--max_image_size", type=int | None, help="the largest image, in pixels on a side"
    )
    parser.add_argument(
        "--image_size", type=int | None, help="count FLOPs at this size, not at each model's own"
    )
    parser.add_format()
    return parser
