"""The parser of every command, errors of one line, and tables."""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from jsonargparse import ArgumentParser, Namespace

from halonet.training.config import describe_misfit

# Names of other projects' options, timm's above all.
SHORT_NAMES = {
    "lr": "learning_rate",
    "img_size": "image_size",
    "opt": "optimizer",
    "smoothing": "label_smoothing",
    "clip_grad": "clip_norm",
}


BOOLEANS = ("true", "false", "yes", "no", "on", "off")  # as YAML has them


class CommandParser(ArgumentParser):
    """A parser whose errors are one line, and that takes options as people type them.

    Options have hyphens or underscores, and some have short names; one that is true or false needs
    no value; ~ is expanded wherever a value starts with it. An empty value is refused.
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if "Parser key" in message:
            message = f"--{describe_misfit(self, message)}"
        fail(f"{_with_hyphens(one_line(message))} (see {self.prog} --help)", 2)

    def format_help(self, *arguments: Any, **options: Any) -> str:
        """The help, with hyphens in the options' names."""
        return _with_hyphens(super().format_help(*arguments, **options))

    def parse_words(self, words: Sequence[str]) -> Namespace:
        """Parse what the user typed after the command's name."""
        kinds = {
            name: getattr(action, "_typehint", None)
            for action in self._actions
            for name in action.option_strings
        }
        completed: list[str] = []
        for place, word in enumerate(words):
            option, equals, value = _split_option(word)
            is_flag = bool(option) and not equals  # its value, if it has one, is the next word
            if not value and not is_flag:
                named = option or (
                    words[place - 1] if place and words[place - 1][:2] == "--" else ""
                )
                self.error(
                    f"{named or 'an argument'} is empty; is a variable of the shell not set?"
                )
            full = "--" + SHORT_NAMES.get(option[2:], "")
            if option not in kinds and full in kinds:
                option = full
            following = words[place + 1].lower() if place + 1 < len(words) else ""
            takes_bool = bool in (kinds.get(option), *get_args(kinds.get(option)))
            is_alone = not following or following[:2] == "--" or kinds.get(option) is bool
            if takes_bool and is_alone and is_flag and following not in BOOLEANS:
                equals, value = "=", "true"
            completed.append(option + equals + os.path.expanduser(value))
        return self.parse_args(completed)

    def add_device(self) -> None:
        """Add --device, for commands that run a model."""
        self.add_argument(
            "--device",
            type=str,
            default="auto",
            help="auto (the GPU where there is one), cpu, cuda, cuda:1, mps",
        )

    def add_mirror(self) -> None:
        """Add --mirror, for commands that run a classifier."""
        self.add_argument(
            "--mirror",
            type=bool,
            default=False,
            help="take the mean of the logits of each image and its mirror image",
        )

    def add_images(self, *, videos: bool = False) -> None:
        """Add the images; where `videos`, with --every, for commands that take videos too."""
        kinds = "images, videos, URLs, folders of images, or a camera's number, 0 or more"
        self.add_argument(
            "images",
            type=str,
            nargs="+",
            help=kinds if videos else "images, URLs, or folders of images",
        )
        if videos:
            self.add_argument(
                "--every",
                type=int,
                default=1,
                help="of a video the first frame, and from there each that is this many later",
            )

    def add_format(self) -> None:
        """Add --format, of what is printed."""
        self.add_argument(
            "--format", type=Literal["table", "json"], default="table", help="what is printed"
        )


def find_options(words: Sequence[str], *names: str) -> dict[str, str | None]:
    """The values given to some options; None without the option, empty where it has no value.

    These options decide the defaults of the others, so they are needed before the whole parser.
    jsonargparse refuses to parse only the known arguments, argparse doesn't.
    """
    parser = argparse.ArgumentParser(add_help=False)
    for name in names:
        parser.add_argument(f"--{name}", nargs="?", const="")
    parts = [_split_option(word) for word in words]
    return vars(parser.parse_known_args(["".join(part) for part in parts])[0])


def list_given_images(given: Sequence[str], *, videos: bool = False) -> list[Any]:
    """The images that the user named by path or URL, those in folders among them.

    What is left out of a folder is said on standard error.

    Args:
        given: what the user typed.
        videos: videos and the numbers of cameras may be among them.

    Returns:
        Paths, `NamedImage` of URLs, and `Video`.

    Raises:
        ValueError: a folder without images, or a video that can't be read. FileNotFoundError: a URL
        that can't be read, no such video or camera.
    """
    from halonet.data.download import is_url
    from halonet.data.image_files import find_images
    from halonet.inference.images import open_place
    from halonet.inference.video import Video

    images: list[Any] = []
    for place in given:
        if videos and is_camera(place):
            images.append(Video(int(place)))
            continue
        if not Path(place).is_dir():
            images.append(open_place(place) if videos or is_url(place) else Path(place))
            continue
        found, left_out = find_images(Path(place))
        said = f"; left out: {left_out}" if left_out.counts else ""
        if not found:
            raise ValueError(f"{place} holds no images{said}")
        if said:
            print(f"halonet: {one_line(f'{place}{said}')}", file=sys.stderr)
        images += found
    return images


def is_camera(place: str) -> bool:
    """Whether the user named a camera, by its number; a file may be called by a number, too."""
    return place.isdecimal() and not Path(place).exists()


def overview(command: str, purposes: Mapping[str, str]) -> str:
    """The help of a command that has commands of its own."""
    lines = [f"usage: {command} COMMAND [options]", ""]
    lines += [f"  {name:9} {purpose}" for name, purpose in purposes.items()]
    return "\n".join([*lines, "", f"{command} COMMAND --help lists a command's options."])


def make_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table as text, in aligned columns."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _split_option(word: str) -> tuple[str, str, str]:
    """The option's name with underscores, the sign =, and the value; without a name, the value."""
    if not word.startswith("--"):
        return "", "", word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_"), equals, value


def _with_hyphens(text: str) -> str:
    return re.sub(r"--[a-z0-9_.]+", lambda option: option[0].replace("_", "-"), text)


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


def fail(reason: str, status: int) -> NoReturn:
    """Print the reason on standard error, and exit with the status."""
    print(f"halonet: {reason}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
    sys.exit(status)


def drop_output() -> None:
    """Discard what standard output still buffers: flushing it at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_number(text: str | None) -> float:
    """A number with an optional K, M or G, as 10M; infinity for None."""
    if text is None:
        return float("inf")
    match = re.fullmatch(r"([0-9.]+)([KMG]?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"expected a number such as 10M or 6G, got {text!r}")
    return float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[match[2].upper()]
