"""halonet train | evaluate | predict: classifiers."""

import dataclasses
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from halonet.cli.training import make_training_parser, parse_training, run_training
from halonet.devices import find_device
from halonet.models.classifier import Classifier
from halonet.models.creation import PACKAGED
from halonet.models.pretrained import ADAPTABLE_FIELDS, load_model

PURPOSES = {
    "train": "train a model on images, evaluate it, show predictions",
    "evaluate": "score a checkpoint on held-out images",
    "predict": "print the most probable classes of images",
}

FALSE = ("false", "no", "off")  # as YAML has it
CHECKPOINT = "a run folder, a safetensors file, or an ONNX file of halonet export"


def train_command(words: Sequence[str]) -> None:
    """Train a classifier and print its held-out accuracy."""
    parser = make_train_parser(_recipe_name(words))
    if _starts_otherwise(words):
        parser.set_defaults({"pretrained": False})
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


def _recipe_name(words: Sequence[str]) -> str:
    """The value of --recipe; without it, elpv for the data elpv, for any other finetune where the
    run starts from weights and small where it doesn't."""
    given = find_options(words, "recipe", "data", "init", "pretrained")
    if given["recipe"] or given["data"] in (None, "elpv"):
        return given["recipe"] or "elpv"
    wanted = given["pretrained"]
    if wanted is None:
        from_weights = given["init"] or not _starts_otherwise(words)
    else:
        from_weights = wanted.lower() not in FALSE
    return "finetune" if from_weights else "small"


def _starts_otherwise(words: Sequence[str]) -> bool:
    """Whether the weights that come with the package aren't the ones to start from."""
    given = find_options(words, "init", "model")
    fit = _changed_options(words) <= set(ADAPTABLE_FIELDS)
    return bool(given["init"]) or not fit or given["model"] not in (None, *PACKAGED)


def _changed_options(words: Sequence[str]) -> set[str]:
    """Names of the model's options in the words, of --model-options '{...}' and .layers alike."""
    text = find_options(words, "model_options")["model_options"]
    try:
        values = yaml.safe_load(text or "{}")
    except yaml.YAMLError:  # the whole parser says so
        values = None
    names = set(values) if isinstance(values, dict) else {"model_options"}
    for word in words:
        option = word.partition("=")[0].replace("-", "_")
        if option.startswith("__model_options."):
            names.add(option.partition(".")[2])
    return names


def evaluate_command(words: Sequence[str]) -> None:
    """Score a checkpoint on held-out images, write the report and print the scores."""
    parser = make_evaluate_parser()
    options = parser.parse_words(words)
    from halonet.classification.config import TrainingConfig, make_config
    from halonet.classification.evaluate import choose_images, evaluate_on
    from halonet.classification.image_predictions import ImagePredictions
    from halonet.classification.report import make_class_rows, write_report
    from halonet.data.sources import is_same_data, load_data, split_name
    from halonet.files import require_no_input
    from halonet.models.metadata import find_checkpoint
    from halonet.training.checkpoint import check_report_folder, find_run, read_config

    device = find_device(options.device)
    checkpoint = find_checkpoint(Path(options.checkpoint))
    run = find_run(checkpoint)
    output = Path(options.output or checkpoint.parent / "evaluation")
    check_report_folder(output, foreign="results.json")
    config = None if run is None else read_config(run, make_config)
    if options.data is None and config is None:
        parser.error(f"{checkpoint} lies in no run folder: say which --data")
    config = config or TrainingConfig()
    names = ("data", "data_root", "validation_share", "validation_data", "group")
    given: dict[str, Any] = {name: options[name] for name in names if options[name] is not None}
    data_name = given.get("data", config.data)
    predictions = output / "predictions.csv"
    require_no_input(predictions, [Path(split_name(data_name)[1])])
    # Of other data than the run's all is scored, unless it has a held-out part, or --split says.
    if run is None or not is_same_data(data_name, config.data):
        config = dataclasses.replace(config, validation_data=None, fold=None, group=None)
        if split_name(data_name)[1] and options.split in (None, "all"):
            given.setdefault("validation_share", 1.0)
    elif "validation_share" in given:
        given["fold"] = None
    model = _load(checkpoint, options.device)
    config = dataclasses.replace(config, **given)
    data = load_data(
        config.data,
        task=model.task,
        data_root=config.data_root,
        validation_share=config.validation_share,
        validation_data=config.validation_data,
        fold=config.fold,
        fold_seed=config.fold_seed,
        group=config.group,
    )
    data, scored = choose_images(data, options.split)
    which = "all" if scored == "images" else "the"
    print(f"scoring {which} {len(data.validation)} {scored} of {data.name}", flush=True)
    for reason in data.left_out:
        print(f"left out: {reason}", flush=True)
    if model.class_names is not None:
        data = data.with_classes(model.class_names)
    evaluation = evaluate_on(
        _prepare(model, device),
        data,
        workers=config.workers,
        broken_share=config.broken_share,
        mirror=options.mirror,
    )
    output.mkdir(parents=True, exist_ok=True)
    summary = write_report(output, model, data, evaluation, scored=scored)
    ImagePredictions(data, evaluation).write(predictions)
    _print_scores(evaluation, data, "")
    print(f"loss {evaluation.loss:.3f}")
    print(make_table(*make_class_rows(summary)))
    print(f"open {output / 'report.html'}; all predictions are in {predictions}")


def _load(checkpoint: Path, device: str) -> Any:
    """The model of a checkpoint, or of a file that `halonet export` wrote."""
    if checkpoint.suffix != ".onnx":
        return load_model(checkpoint)
    from halonet.export.onnx_classifier import load_onnx

    if device not in ("auto", "cpu"):
        raise ValueError(f"device must be auto or cpu for an exported file, got {device!r}")
    model = load_onnx(checkpoint)
    if model.description.with_preprocessing:
        raise ValueError(
            f"{checkpoint} prepares photos itself; give the checkpoint that it was exported from, "
            "or a file exported without preprocessing"
        )
    return model


def _prepare(model: Any, device: Any) -> Any:
    """A model as it is run: fused, on the device; an exported one is both, on the CPU."""
    return model.fuse().to(device) if isinstance(model, Classifier) else model


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
        "--output", type=str | None, help="folder of the report; evaluation beside the checkpoint"
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
    from halonet.classification.multilabel import THRESHOLD
    from halonet.classification.predict import predict
    from halonet.classification.prediction import Prediction
    from halonet.files import require_no_input
    from halonet.models.metadata import find_checkpoint

    device = find_device(options.device)
    checkpoint = find_checkpoint(Path(options.checkpoint))
    model = _prepare(_load(checkpoint, options.device), device)
    multilabel = model.task == "multilabel"
    unused = "top_k" if multilabel else "threshold"
    if options[unused] is not None:
        kind = "any number of labels" if multilabel else "one label"
        parser.error(f"--{unused} doesn't go with a model that gives an image {kind}")
    names = model.class_names or tuple(str(index) for index in range(model.num_classes))
    if options.output is not None and not Path(options.output).parent.is_dir():
        raise FileNotFoundError(f"no folder at {Path(options.output).parent}")
    paths = list_given_images(options.images)
    if options.output is not None:
        require_no_input(Path(options.output), [checkpoint, *paths])

    as_json = options.format == "json"
    width = max(len(str(path)) for path in paths)
    opening = "[" if as_json else _make_line("image", "predictions", width)
    written = broken = 0
    with _output(options.output) as write:
        try:
            for path, probabilities in predict(model, paths, mirror=options.mirror):
                if isinstance(probabilities, str):
                    broken += 1
                    print(f"halonet: {probabilities}", file=sys.stderr)
                    continue
                prediction = Prediction(str(path), names, probabilities, model.task, path)
                entry = prediction.to_dict(
                    top_k=options.top_k or TOP_K, threshold=options.threshold or THRESHOLD
                )
                text = _make_line(entry["image"], _describe_entry(entry), width)
                if as_json:
                    text = "\n" + textwrap.indent(json.dumps(entry, indent=2), "  ")
                separator = "," if as_json else ""
                write((separator if written else opening) + text)
                written += 1
        finally:
            if as_json and written:
                write("\n]\n")
        if not written:
            write("[]\n" if as_json else opening)
    if broken:
        fail(f"{broken} of {len(paths)} images can't be read", 1)


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


def _describe_entry(entry: Mapping[str, Any]) -> str:
    classes = [f"{one['class']} {100 * one['probability']:.1f} %" for one in entry["predictions"]]
    return ", ".join(classes) or "none"


def _make_line(image: str, predictions: str, width: int) -> str:
    return f"{image.ljust(width)}  {predictions}\n"


def make_predict_parser() -> CommandParser:
    """The options of `halonet predict`."""
    parser = CommandParser(prog="halonet predict", description=PURPOSES["predict"])
    parser.add_argument("checkpoint", type=str, help=CHECKPOINT)
    parser.add_argument("images", type=str, nargs="+", help="images, or folders of images")
    parser.add_argument(
        "--top_k", type=int | None, help=f"classes for each image, {TOP_K} unless it says"
    )
    parser.add_argument(
        "--threshold",
        type=float | None,
        help="probability from which on a model of several labels predicts one, 0.5 unless it says",
    )
    parser.add_mirror()
    parser.add_device()
    parser.add_format()
    parser.add_argument(
        "--output", type=str | None, help="a file to write to instead of the screen"
    )
    return parser
