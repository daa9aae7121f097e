"""halonet shards: a data set as WebDataset shards."""

import sys
from collections.abc import Sequence
from pathlib import Path

from halonet.cli.parser import CommandParser, parse_number

PURPOSE = "write a data set as WebDataset shards"


def shards_command(words: Sequence[str]) -> None:
    """Write the shards, and print the command that trains on them."""
    parser = make_shards_parser()
    options = parser.parse_words(words)
    try:
        shard_bytes = round(parse_number(options.shard_size))
    except ValueError as error:
        parser.error(f"--shard_size: {error}")
    from halonet.data.shard_writer import write_shards
    from halonet.data.sources import load_data

    data = load_data(
        options.data, data_root=options.data_root, validation_share=options.validation_share
    )
    print(data.describe(), flush=True)
    written = write_shards(
        data, Path(options.output), shard_bytes=shard_bytes, skip_broken=options.skip_broken
    )
    for problem in written.problems:
        print(f"halonet: left out: {problem}", file=sys.stderr)
    print(f"{written.images} images in {written.shards} shards; train on them with:")
    print(f"halonet train --data shards:{options.output}")


def make_shards_parser() -> CommandParser:
    """The options of `halonet shards`."""
    parser = CommandParser(prog="halonet shards", description=PURPOSE)
    parser.add_argument("data", type=str, help="as for train: folder:PATH, hf:NAME, ...")
    parser.add_argument("output", type=str, help="folder of the shards, new or empty")
    parser.add_argument(
        "--shard_size", type=str, default="1G", help="largest size of a shard, as 500M"
    )
    parser.add_argument(
        "--skip_broken", type=bool, default=False, help="leave out images that can't be read"
    )
    parser.add_argument("--data_root", type=str, default="data", help="where downloads lie")
    parser.add_argument(
        "--validation_share",
        type=float,
        default=0.2,
        help="share held out of data that has no held-out part",
    )
    return parser
