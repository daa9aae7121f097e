"""halonet benchmark: a model in all formats and precisions."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halonet.cli.export import load_run_data
from halonet.cli.parser import CommandParser, make_table

PURPOSE = "one model in all formats and precisions: time, size, accuracy"


def benchmark_command(words: Sequence[str]) -> None:
    """Print a line for each format and precision."""
    parser = make_benchmark_parser()
    options = parser.parse_words(words)
    for name in ("images", "threads"):
        if options[name] is not None and options[name] < 1:
            parser.error(f"--{name} must be 1 or more, got {options[name]}")
    import numpy as np
    import torch

    from halonet.data.splits import choose
    from halonet.export.benchmark import BATCHES, benchmark
    from halonet.models.metadata import find_checkpoint
    from halonet.models.pretrained import load_model

    checkpoint = find_checkpoint(Path(options.checkpoint))
    model = load_model(checkpoint)
    data, broken_share = load_run_data(checkpoint, model, "the formats are scored on")
    if options.images is not None:
        count = min(options.images, len(data.validation))
        places = np.linspace(0, len(data.validation) - 1, count).round().astype(int)
        data = dataclasses.replace(data, validation=choose(data.validation, places))
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    try:
        rows = benchmark(
            model,
            data,
            file_bytes=checkpoint.stat().st_size,
            compiled=options.compile,
            broken_share=broken_share,
        )
    finally:
        threads = torch.get_num_threads()
        torch.set_num_threads(before)
    if options.format == "json":
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    score = next(name for row in rows for name in row.figures if name != "loss")
    header = ["format", "precision", *(f"ms, batch {batch}" for batch in BATCHES), "MB"]
    header += [score.replace("_", " "), "difference"]
    print(make_table(header, [_make_row(row, score, BATCHES) for row in rows]))
    for row in rows:
        if row.problem is not None:
            print(f"{row.format} {row.precision} doesn't run: {row.problem}")
    size = model.preprocessing.image_size
    print(
        f"milliseconds of an image of {size} x {size} pixels with {threads} thread(s), medians of "
        f"turns; {score.replace('_', ' ')} on {len(data.validation)} held-out images; difference "
        "of the logits from the model's, of the largest"
    )


def _make_row(row: Any, score: str, batches: Sequence[int]) -> list[str]:
    if row.problem is not None:
        return [row.format, row.precision, *["-"] * (len(batches) + 3)]
    return [
        row.format,
        row.precision,
        *(f"{row.milliseconds[batch]:.2f}" for batch in batches),
        "-" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
        f"{100 * row.figures[score]:.2f} %",
        f"{row.difference:.1e}",
    ]


def make_benchmark_parser() -> CommandParser:
    """The options of `halonet benchmark`."""
    parser = CommandParser(prog="halonet benchmark", description=PURPOSE)
    parser.add_argument("checkpoint", type=str, help="a run folder, or a safetensors file in one")
    parser.add_argument(
        "--images",
        type=int | None,
        help="score this many of the held-out images, evenly spaced; all by default",
    )
    parser.add_argument(
        "--threads", type=int | None, help="of every runtime; as many as torch takes by default"
    )
    parser.add_argument(
        "--compile",
        type=bool,
        default=False,
        help="torch.compile the model and compile it by AOTInductor too, which takes minutes",
    )
    parser.add_format()
    return parser
