"""halonet explain: what a classifier looked at."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from halonet.cli.parser import CommandParser, fail, list_given_images, make_table, one_line
from halonet.cli.pictures import name_pictures
from halonet.devices import find_device
from halonet.models.pretrained import load_model

PURPOSE = "show what a classifier looked at in images"
OF_ONE_IMAGE = ("class", "method", "curves", "at", "stage", "layer", "head")  # options


def explain_command(words: Sequence[str]) -> None:
    """Write pictures of relevance or attention and their numbers, and print where they are."""
    parser = make_explain_parser()
    options = parser.parse_words(words)
    at = None if options.at is None else _parse_point(parser, options.at)
    if options.beside is not None and not options.receptive_field:
        parser.error("--beside goes with --receptive-field")
    if options.tables or options.receptive_field:
        named = [name for name in OF_ONE_IMAGE if options[name]]
        if named or (options.tables and options.receptive_field):
            other = named[0] if named else "receptive_field"
            kind = "tables" if options.tables else "receptive_field"
            parser.error(f"--{other} goes without --{kind}")
        _explain_model(options)
        return
    for name in ("layer", "head") if at is None else ("class", "method"):
        if options[name] is not None:
            parser.error(f"--{name} goes {'with' if at is None else 'without'} --at")
    _explain_images(parser, options, at)


def _explain_images(parser: CommandParser, options: Any, at: tuple[float, float] | None) -> None:
    """Write pictures and numbers of each image's relevance, or of the attention of a place."""
    from halonet.data.pixels import read_image
    from halonet.explain.explanation import explain_image, view_image_attention
    from halonet.explain.relevance import DEFAULT_METHOD
    from halonet.files import make_free_folder, require_empty, write_text
    from halonet.inference.video import NamedImage

    device = find_device(options.device)
    if options.output is not None:
        require_empty(Path(options.output))
    model = load_model(options.checkpoint).eval().to(device)
    pictures = name_pictures(options.images, list_given_images(options.images))
    if at is not None and len(pictures) > 1:
        parser.error(f"--at is a place in one image, got {len(pictures)} images")
    output: Path | None = None
    entries, rows = [], []
    for path, picture in pictures.items():
        try:
            image = read_image(path, model.in_channels)
        except (ValueError, FileNotFoundError) as error:
            print(f"halonet: {one_line(error)}", file=sys.stderr)
            continue
        given = NamedImage(str(path), lambda image=image: image)
        # From here on an error is of the options, and nothing is written yet.
        if at is None:
            found = explain_image(
                model,
                given,
                class_name=options["class"],
                method=options.method or DEFAULT_METHOD,
                stage=options.stage,
                curves=options.curves,
            )
            cells = [found.class_name, f"{100 * found.probability:.1f} %", found.method]
        else:
            found = view_image_attention(
                model,
                given,
                at,
                stage=options.stage,
                layer=options.layer,
                head=options.head,
            )
            cells = [found.view.stage, found.view.layer, found.view.head or "mean"]
        if output is None:
            output = Path(options.output or make_free_folder(Path("explanations")))
            output.mkdir(parents=True, exist_ok=True)
        drawn = output / picture
        drawn.parent.mkdir(parents=True, exist_ok=True)
        found.plot(drawn)
        entries.append(found.to_dict())
        rows.append([path, *cells, drawn])
    if output is not None:
        write_text(output / "explanations.json", json.dumps(entries) + "\n")
        kinds = ["class", "probability", "method"] if at is None else ["stage", "layer", "head"]
        print(make_table(["image", *kinds, "picture"], rows))
        print(f"the numbers: {output / 'explanations.json'}")
    if len(entries) < len(pictures):
        fail(f"{len(pictures) - len(entries)} of {len(pictures)} images can't be read", 1)


def _explain_model(options: Any) -> None:
    """Write the picture and the numbers of the relative tables, or of the receptive fields."""
    from halonet.explain.receptive_field import SHARES, measure_receptive_field
    from halonet.explain.tables import read_tables
    from halonet.files import make_free_folder, require_empty, save_figure, write_text

    device = find_device(options.device)
    if options.output is not None:
        require_empty(Path(options.output))
    images = list_given_images(options.images)
    models = [
        load_model(place).eval().to(device)
        for place in (options.checkpoint, options.beside)
        if place is not None
    ]
    if options.tables:
        tables = read_tables(models[0], images)
        numbers, figure, name = tables.to_dict(), tables.plot(), "tables.png"
    else:
        places = (options.checkpoint, options.beside)
        fields = [
            measure_receptive_field(model, images, name=place)
            for model, place in zip(models, places, strict=False)
        ]
        numbers, name = [field.to_dict() for field in fields], "receptive_field.png"
        figure = fields[0].plot(beside=fields[1] if len(fields) > 1 else None)
        rows = [
            [one.name, stage, *(one.side(stage, share) for share in SHARES)]
            for one in fields
            for stage in range(1, len(one.gradients) + 1)
        ]
        print(make_table(["model", "stage", *(f"{share:.0%} within" for share in SHARES)], rows))
    output = Path(options.output or make_free_folder(Path("explanations")))
    output.mkdir(parents=True, exist_ok=True)
    save_figure(figure, output / name)
    write_text(output / "explanations.json", json.dumps(numbers) + "\n")
    print(f"open {output / name}; the numbers: {output / 'explanations.json'}")


def _parse_point(parser: CommandParser, text: str) -> tuple[float, float]:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*,\s*(\d+(?:\.\d+)?)\s*", text)
    if match is None:
        parser.error(f"--at must be X,Y in pixels of the image, as 120,80, got {text!r}")
    return float(match[1]), float(match[2])


def make_explain_parser() -> CommandParser:
    """The options of `halonet explain`."""
    parser = CommandParser(prog="halonet explain", description=PURPOSE)
    parser.add_argument("checkpoint", type=str, help="a run folder, or a safetensors file")
    parser.add_images()
    parser.add_argument("--class", type=str | None, help="the most probable by default")
    parser.add_argument(
        "--method",
        type=Literal["gradcam", "rollout", "integrated_gradients", "occlusion"] | None,
        help="docs/explain.md compares them; without it the default there",
    )
    parser.add_argument(
        "--curves", type=bool, default=False, help="measure deletion and insertion too"
    )
    parser.add_argument(
        "--at",
        type=str | None,
        help="X,Y in pixels of the image: show where this place looks, not a class's relevance",
    )
    parser.add_argument(
        "--stage", type=int | None, help="1 to 4: of gradcam's map; with --at of the attention"
    )
    parser.add_argument(
        "--layer", type=int | None, help="attention layer of the stage, from 1; the last by default"
    )
    parser.add_argument("--head", type=int | None, help="from 1; the mean of all by default")
    parser.add_argument(
        "--tables",
        type=bool,
        default=False,
        help="draw what the learned relative tables add to the scores, mean over the images",
    )
    parser.add_argument(
        "--receptive_field",
        type=bool,
        default=False,
        help="draw how much each pixel moves the middle of each stage's map, mean over the images",
    )
    parser.add_argument(
        "--beside", type=str | None, help="another run, whose receptive field is drawn too"
    )
    parser.add_argument(
        "--output", type=str | None, help="a new or empty folder; explanations, explanations-2, ..."
    )
    parser.add_device()
    return parser
