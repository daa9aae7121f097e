"""What every command is made of: a parser, one-line errors, tables."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser, Namespace


class CommandParser(ArgumentParser):
    """Says what is wrong in one line, and takes --image-size for --image_size."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(f"{one_line(message)} (see {self.prog} --help)", 2)

    def parse_words(self, words: Sequence[str]) -> Namespace:
        """Parse what the user typed after the command's name."""
        return self.parse_args([_with_underscores(word) for word in words])


def find_option(words: Sequence[str], name: str) -> str | None:
    """The last value given to an option, before anything is parsed."""
    found = re.findall(rf"--{name}[= ](\S+)", " ".join(words))
    return found[-1] if found else None


def list_given_images(given: Sequence[str]) -> list[Path]:
    """The image files that the user named, those in folders among them.

    Raises:
        ValueError: a folder without images.
    """
    from halonet.data.folders import find_images

    paths: list[Path] = []
    for place in map(Path, given):
        found = find_images(place) if place.is_dir() else [place]
        if not found:
            raise ValueError(f"{place} holds no images")
        paths += found
    return paths


def overview(command: str, purposes: Mapping[str, str]) -> str:
    """What a command without a word prints: the words that it takes."""
    lines = [f"usage: {command} COMMAND [options]", ""]
    lines += [f"  {name:9} {purpose}" for name, purpose in purposes.items()]
    return "\n".join([*lines, "", f"{command} COMMAND --help lists a command's options."])


def make_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Text in columns."""
    lines = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _with_underscores(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


def fail(reason: str, status: int) -> NoReturn:
    """Say why on standard error, and exit."""
    print(f"halonet: {reason}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        drop_output()
    sys.exit(status)


def drop_output() -> None:
    """Send nowhere what waits in standard output: flushing it at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse_number(text: str | None) -> float:
    """`10M` as 10,000,000; no text as infinity."""
    if text is None:
        return float("inf")
    match = re.fullmatch(r"([0-9.]+)([KMG]?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"expected a number such as 10M or 6G, got {text!r}")
    return float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[match[2].upper()]
