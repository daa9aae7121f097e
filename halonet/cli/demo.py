"""halonet demo: a page to try a model."""

from collections.abc import Sequence
from pathlib import Path

from halonet.cli.parser import CommandParser

PURPOSE = "open a page on this machine to try a model, or write it as a Space"


def demo_command(words: Sequence[str]) -> None:
    """Serve the page until it is stopped, or write it as a Space of the Hub."""
    parser = make_demo_parser()
    options = parser.parse_words(words)
    if options.port is not None and not 0 < options.port < 65536:
        parser.error(f"--port must be from 1 to 65535, got {options.port}")
    if options.space is not None:
        _write_space(options.model, Path(options.space))
        return
    from halonet.demo.page import serve
    from halonet.inference.loading import load_run

    serve(load_run(options.model, device=options.device), host=options.host, port=options.port)


def _write_space(model: str, folder: Path) -> None:
    from halonet.demo.space import write_space

    for path in write_space(model, folder):
        print(path)
    print(
        "push this folder to a Space with the SDK gradio. Its requirements.txt asks PyPI for this "
        "version of halonet: where it isn't there, write the address of your copy"
    )


def make_demo_parser() -> CommandParser:
    """The options of `halonet demo`."""
    parser = CommandParser(prog="halonet demo", description=PURPOSE)
    parser.add_argument(
        "model",
        type=str,
        nargs="?",
        default="halonet_tiny",
        help="a run folder, a safetensors file or hf-hub:USER/REPOSITORY; without it halonet_tiny, "
        "with the weights that come with the package",
    )
    parser.add_argument(
        "--space",
        type=str | None,
        help="write the page as a Space of the Hugging Face Hub into this new folder, and stop",
    )
    parser.add_argument(
        "--host",
        type=str,
        default="127.0.0.1",
        help="address to listen on; by default of this machine only, 0.0.0.0 for all",
    )
    parser.add_argument("--port", type=int | None, help="the first free from 7860 on")
    parser.add_device()
    return parser
