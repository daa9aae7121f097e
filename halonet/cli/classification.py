"""halonet train | evaluate | predict: classifiers."""

import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml

from halonet.classification.prediction import TOP_K
from halonet.cli.parser import (
    CommandParser,
    fail,
    find_options,
    list_given_images,
    make_table,
)
from halonet.cli.pictures import PictureWriter, name_pictures
from halonet.cli.training import make_training_parser, parse_training, run_training
from halonet.devices import find_device

PURPOSES = {
    "train": "train a model on images, evaluate it, show predictions",
    "evaluate": "score a checkpoint on held-out images",
    "predict": "print the most probable classes of images",
}

BATCH_SIZE = 32  # images
TIME_WIDTH = 10  # columns of a frame's time
FALSE = ("false", "no", "off")  # as YAML has it
CHECKPOINT = "a run folder, a safetensors file, or an ONNX file of halonet export"


def train_command(words: Sequence[str]) -> None:
    """Train a classifier and print its held-out accuracy."""
    from halonet.classification.recipes import choose_config

    config = choose_config(find_decisive(words))
    parser = make_train_parser(config.recipe)
    parser.set_defaults({"pretrained": config.pretrained})
    fields = parse_training(parser, words)
    from halonet.classification.training import Classification

    result = run_training(Classification, fields)
    if result is None:
        return
    print()
    _print_scores(result.evaluation, result.data, "held-out ")
    if result.data.note:
        print(result.data.note)
    print(f"trained in {result.minutes:.1f} minutes; open {result.folder / 'report.html'}")


def make_train_parser(recipe: str) -> CommandParser:
    """The options of `halonet train`, with a recipe's values as defaults."""
    from halonet.classification.recipes import get_recipe

    return make_training_parser("halonet train", PURPOSES["train"], get_recipe(recipe))


def find_decisive(words: Sequence[str]) -> dict[str, Any]:
    """The values that decide about the others' defaults, see `choose_config`."""
    names = ("recipe", "data", "init", "pretrained", "model")
    found = find_options(words, *names)
    given: dict[str, Any] = {name: value for name, value in found.items() if value}
    if found["pretrained"] is not None:  # empty where it is alone
        given["pretrained"] = found["pretrained"].lower() not in FALSE
    given["model_options"] = _find_model_options(words)
    return given


def _find_model_options(words: Sequence[str]) -> dict[str, Any]:
    """The model's options among the words, whose values don't matter here."""
    text = find_options(words, "model_options")["model_options"]
    try:
        values = yaml.safe_load(text or "{}")
    except yaml.YAMLError:  # the whole parser says so
        values = None
    given = values if isinstance(values, dict) else {"model_options": text}
    for word in words:  # one by one, as --model-options.layers
        option = word.partition("=")[0].replace("-", "_")
        if option.startswith("__model_options."):
            given[option.partition(".")[2]] = word
    return given


def evaluate_command(words: Sequence[str]) -> None:
    """Score a checkpoint on held-out images, write the report and print the scores."""
    options = make_evaluate_parser().parse_words(words).as_dict()
    from halonet.classification.report import make_class_rows
    from halonet.runs import evaluate

    result = evaluate(options.pop("checkpoint"), **options)
    _print_scores(result.evaluation, result.data, "")
    if result.neighbour_accuracy is not None:
        count = options["neighbours"]
        print(f"accuracy of {count} neighbours {100 * result.neighbour_accuracy:.1f} %")
    print(f"loss {result.evaluation.loss:.3f}")
    print(make_table(*make_class_rows(result.summary)))
    predictions = result.folder / "predictions.csv"
    print(f"open {result.folder / 'report.html'}; all predictions are in {predictions}")


def _print_scores(evaluation: Any, data: Any, kind: str) -> None:
    for name, value in evaluation.figures.items():
        if name == "loss":
            continue
        words = name.replace("_", " ").replace("f1", "F1 (threshold 0.5)")
        print(f"{kind}{words} {100 * value:.1f} % on {len(data.validation)} images")
        if name == "accuracy":
            print(f"majority-class baseline {100 * data.majority_share:.1f} %")


def make_evaluate_parser() -> CommandParser:
    """The options of `halonet evaluate`."""
    parser = CommandParser(prog="halonet evaluate", description=PURPOSES["evaluate"])
    parser.add_argument("checkpoint", type=str, help=CHECKPOINT)
    parser.add_argument(
        "--data", type=str | None, help="as for train; without it, the data that the run trained on"
    )
    parser.add_argument("--data_root", type=str | None, help="where torchvision's data sets lie")
    parser.add_argument(
        "--validation_share",
        type=float | None,
        help="share held out of data that has no held-out part",
    )
    parser.add_argument(
        "--validation_data", type=str | None, help="held-out tar files, where data is of tar files"
    )
    parser.add_argument(
        "--split",
        type=Literal["train", "val", "test", "all"] | None,
        help="the part to score; without it val of the run's data and of data with parts, else all",
    )
    parser.add_argument(
        "--group", type=str | None, help="column of groups, where data is a CSV file"
    )
    parser.add_argument(
        "--output",
        type=str | None,
        help="folder of the report; evaluation beside the checkpoint, of other images "
        "evaluation-2, ...",
    )
    parser.add_argument(
        "--neighbours",
        type=int | None,
        help="score the classes of this many nearest training images too, by the features before "
        "the classifier",
    )
    parser.add_mirror()
    parser.add_device()
    return parser


def predict_command(words: Sequence[str]) -> None:
    """Print or write the most probable classes of images."""
    parser = make_predict_parser()
    options = parser.parse_words(words)
    if options.top_k is not None and options.top_k < 1:
        parser.error(f"--top_k must be 1 or more, got {options.top_k}")
    if options.threshold is not None and not 0 < options.threshold < 1:
        parser.error(f"--threshold must be between 0 and 1, got {options.threshold}")
    if options.every < 1:
        parser.error(f"--every must be 1 or more, got {options.every}")
    from halonet.classification.multilabel import THRESHOLD
    from halonet.classification.predict import predict
    from halonet.classification.prediction import Prediction
    from halonet.data.pixels import read_image
    from halonet.files import require_empty, require_new_file
    from halonet.inference.images import read_frames
    from halonet.inference.video import Video
    from halonet.models.classifier import name_classes
    from halonet.models.metadata import find_checkpoint
    from halonet.runs import prepare, read_model

    if options.output is not None:
        require_new_file(Path(options.output))
    device = find_device(options.device)
    checkpoint = find_checkpoint(Path(options.checkpoint))
    model = prepare(read_model(checkpoint, options.device), device)
    multilabel = model.task == "multilabel"
    unused = "top_k" if multilabel else "threshold"
    if options[unused] is not None:
        kind = "any number of labels" if multilabel else "one label"
        parser.error(f"--{unused} doesn't go with a model that gives an image {kind}")
    names = name_classes(model)
    folder = None if options.save_pictures is None else Path(options.save_pictures)
    if folder is not None:
        require_empty(folder)
    pictures = name_pictures(options.images, list_given_images(options.images, videos=True))
    if (options.top_k or 0) > len(names):
        note = f"--top-k {options.top_k}: the model has {len(names)} classes"
        print(f"halonet: {note}", file=sys.stderr)

    # One by one where frames come: each is in memory until it is written.
    batch_size = 1 if any(isinstance(image, Video) for image in pictures) else BATCH_SIZE
    chosen = {"top_k": options.top_k or TOP_K, "threshold": options.threshold or THRESHOLD}
    found = predict(
        model,
        read_frames(pictures, options.every),
        batch_size=batch_size,
        mirror=options.mirror,
    )
    width = max(len(str(image)) + TIME_WIDTH * isinstance(image, Video) for image in pictures)
    broken = 0
    with ExitStack() as stack:
        write = stack.enter_context(_output(options.output))
        list_as = _list_as_json(write) if options.format == "json" else _list_as_table(write, width)
        add = stack.enter_context(list_as)
        writer = None
        if folder is not None:
            writer = stack.enter_context(PictureWriter(folder, pictures))
        for source, probabilities in found:
            if isinstance(probabilities, str):
                broken += 1
                print(f"halonet: {probabilities}", file=sys.stderr)
                continue
            time = getattr(source, "time", None)
            prediction = Prediction(str(source), names, probabilities, model.task, source, time)
            if writer is not None:
                writer.write(source, prediction.draw(read_image(source), **chosen), time)
            add(prediction.to_dict(**chosen))
    if broken:
        fail(f"{broken} of {len(pictures)} images can't be read", 1)


@contextmanager
def _output(path: str | None) -> Iterator[Callable[[str], None]]:
    """Writes to the screen at once; or to a file at the end, what there is of a stopped run too."""
    from halonet.files import write_text

    parts: list[str] = []

    def write(text: str) -> None:
        if path is None:
            print(text, end="", flush=True)
        else:
            parts.append(text)

    try:
        yield write
    finally:
        if path is not None and parts:
            write_text(Path(path), "".join(parts))


@contextmanager
def _list_as_json(write: Callable[[str], None]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Writes entries one by one as a JSON list, which is whole where the command is stopped."""
    written = 0

    def add(entry: Mapping[str, Any]) -> None:
        nonlocal written
        write(("," if written else "[") + "\n" + textwrap.indent(json.dumps(entry, indent=2), "  "))
        written += 1

    try:
        yield add
    finally:
        if written:
            write("\n]\n")
    if not written:
        write("[]\n")


@contextmanager
def _list_as_table(
    write: Callable[[str], None], width: int
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Writes entries one by one as lines, under a header where there is any."""
    header = f"{'image'.ljust(width)}  predictions\n"

    def add(entry: Mapping[str, Any]) -> None:
        nonlocal header
        image = entry["image"] + (f" {entry['time']:.2f} s" if "time" in entry else "")
        classes = (
            f"{one['class']} {100 * one['probability']:.1f} %" for one in entry["predictions"]
        )
        write(f"{header}{image.ljust(width)}  {', '.join(classes) or 'none'}\n")
        header = ""

    yield add


def make_predict_parser() -> CommandParser:
    """The options of `halonet predict`."""
    parser = CommandParser(prog="halonet predict", description=PURPOSES["predict"])
    parser.add_argument("checkpoint", type=str, help=CHECKPOINT)
    parser.add_images(videos=True)
    parser.add_argument(
        "--top_k", type=int | None, help=f"classes for each image, {TOP_K} by default"
    )
    parser.add_argument(
        "--threshold",
        type=float | None,
        help="probability from which on a model of several labels predicts one, 0.5 by default",
    )
    parser.add_mirror()
    parser.add_device()
    parser.add_format()
    parser.add_argument(
        "--output", type=str | None, help="a new file to write to instead of the screen"
    )
    parser.add_argument(
        "--save_pictures",
        type=str | None,
        help="a new or empty folder for the images with their classes written on, and videos alike",
    )
    return parser
