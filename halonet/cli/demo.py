"""halonet demo: a page to try a classifier."""

import signal
import sys
from collections.abc import Sequence

from halonet.cli.parser import CommandParser

PURPOSE = "open a page on this machine to try a classifier"


def demo_command(words: Sequence[str]) -> None:
    """Serve the page until it is stopped."""
    parser = make_demo_parser()
    options = parser.parse_words(words)
    if options.port is not None and not 0 < options.port < 65536:
        parser.error(f"--port must be from 1 to 65535, got {options.port}")
    from halonet.demo import serve
    from halonet.inference import load_run

    run = load_run(options.checkpoint, device=options.device)
    # Ended like this too, the page deletes what it was sent.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serve(run, host=options.host, port=options.port)


def make_demo_parser() -> CommandParser:
    """The options of `halonet demo`."""
    parser = CommandParser(prog="halonet demo", description=PURPOSE)
    parser.add_argument("checkpoint", type=str, help="a run folder, or a safetensors file")
    parser.add_argument(
        "--host",
        type=str,
        default="127.0.0.1",
        help="address to listen on; this machine only unless it says, 0.0.0.0 for all",
    )
    parser.add_argument("--port", type=int | None, help="the first free from 7860 on")
    parser.add_device()
    return parser
