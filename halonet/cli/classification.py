"""halonet train | evaluate | predict: classifiers."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from halonet.cli.parser import (
    CommandParser,
    fail,
    find_options,
    list_given_images,
    make_table,
)
from halonet.cli.training import make_training_parser, parse_training, run_training
from halonet.devices import find_device
from halonet.models.pretrained import load_model

PURPOSES = {
    "train": "train a model on images, evaluate it, show predictions",
    "evaluate": "score a checkpoint on held-out images",
    "predict": "print the most probable classes of images",
}


def train_command(words: Sequence[str]) -> None:
    """Train a classifier and print its held-out accuracy."""
    fields = parse_training(make_train_parser(_recipe_name(words)), words)
    from halonet.classification.training import Classification

    result = run_training(Classification, fields)
    if result is None:
        return
    accuracy, images = result.evaluation.accuracy, len(result.data.validation.labels)
    print(f"\nheld-out accuracy {100 * accuracy:.1f} % on {images} images")
    print(f"majority-class baseline {100 * result.data.majority_share:.1f} %")
    if result.data.note:
        print(result.data.note)
    print(f"trained in {result.minutes:.1f} minutes; open {result.folder / 'report.html'}")


def make_train_parser(recipe: str) -> CommandParser:
    """The options of `halonet train`, with a recipe's values as defaults."""
    from halonet.classification.recipes import get_recipe

    return make_training_parser("halonet train", PURPOSES["train"], get_recipe(recipe))


def _recipe_name(words: Sequence[str]) -> str:
    """The value of --recipe; without it, elpv for the data elpv and small for any other."""
    given = find_options(words, "recipe", "data")
    return given["recipe"] or ("elpv" if given["data"] in (None, "elpv") else "small")


def evaluate_command(words: Sequence[str]) -> None:
    """Score a checkpoint on held-out images, write the report and print the scores."""
    parser = make_evaluate_parser()
    options = parser.parse_words(words)
    from halonet.classification.config import TrainingConfig, make_config
    from halonet.classification.evaluate import evaluate_on
    from halonet.classification.report import write_report
    from halonet.data.sources import load_data
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
    names = ("data", "data_root", "validation_share", "validation_data")
    given = {name: options[name] for name in names}
    if options.data is not None:  # the run's validation_data belongs to the run's data
        config = dataclasses.replace(config, validation_data=None, fold=None, group=None)
    config = dataclasses.replace(
        config, **{name: value for name, value in given.items() if value is not None}
    )
    data = load_data(
        config.data,
        data_root=config.data_root,
        validation_share=config.validation_share,
        validation_data=config.validation_data,
        fold=config.fold,
        fold_seed=config.fold_seed,
        group=config.group,
    )
    print(data.describe(), flush=True)
    model = load_model(checkpoint)
    evaluation = evaluate_on(
        model.fuse().to(device), data, workers=config.workers, broken_share=config.broken_share
    )
    output.mkdir(parents=True, exist_ok=True)
    write_report(output, model, data, evaluation)
    print(f"accuracy {100 * evaluation.accuracy:.1f} % on {len(data.validation.labels)} images")
    print(f"loss {evaluation.loss:.3f}")
    print(f"majority-class baseline {100 * data.majority_share:.1f} %")
    counts = evaluation.class_images.tolist(), evaluation.class_correct.tolist()
    rows = [
        [name, images, f"{100 * correct / images:.1f} %" if images else "-"]
        for name, images, correct in zip(data.class_names, *counts, strict=True)
    ]
    print(make_table(["class", "images", "accuracy"], rows))
    print(f"open {output / 'report.html'}")


def make_evaluate_parser() -> CommandParser:
    """The options of `halonet evaluate`."""
    parser = CommandParser(prog="halonet evaluate", description=PURPOSES["evaluate"])
    parser.add_argument("checkpoint", type=str, help="a run folder, or a safetensors file")
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
        "--output", type=str | None, help="folder of the report; evaluation beside the checkpoint"
    )
    parser.add_device()
    return parser


def predict_command(words: Sequence[str]) -> None:
    """Print or write the most probable classes of images."""
    parser = make_predict_parser()
    options = parser.parse_words(words)
    if options.top_k < 1:
        parser.error(f"--top_k must be 1 or more, got {options.top_k}")
    from halonet.classification.predict import predict
    from halonet.files import require_no_input, write_text
    from halonet.models.metadata import find_checkpoint

    device = find_device(options.device)
    checkpoint = find_checkpoint(Path(options.checkpoint))
    model = load_model(checkpoint).fuse().to(device)
    names = model.class_names or tuple(str(index) for index in range(model.num_classes))
    if options.output is not None and not Path(options.output).parent.is_dir():
        raise FileNotFoundError(f"no folder at {Path(options.output).parent}")
    paths = list_given_images(options.images)
    if options.output is not None:
        require_no_input(Path(options.output), [checkpoint, *paths])

    predictions, broken = [], 0
    for path, probabilities in predict(model, paths):
        if isinstance(probabilities, str):
            broken += 1
            print(f"halonet: {probabilities}", file=sys.stderr)
            continue
        top = probabilities.topk(min(options.top_k, len(names)))
        predictions.append(
            {
                "image": str(path),
                "predictions": [
                    {"class": names[index], "probability": round(probability, 6)}
                    for probability, index in zip(*(part.tolist() for part in top), strict=True)
                ],
            }
        )
    as_json = options.format == "json"
    text = json.dumps(predictions, indent=2) if as_json else _make_predictions_table(predictions)
    if options.output is None:
        print(text)
    else:
        write_text(Path(options.output), text + "\n")
    if broken:
        fail(f"{broken} of {len(paths)} images can't be read", 1)


def _make_predictions_table(predictions: Sequence[dict]) -> str:
    rows = [
        [
            entry["image"],
            ", ".join(
                f"{one['class']} {100 * one['probability']:.1f} %" for one in entry["predictions"]
            ),
        ]
        for entry in predictions
    ]
    return make_table(["image", "predictions"], rows)


def make_predict_parser() -> CommandParser:
    """The options of `halonet predict`."""
    parser = CommandParser(prog="halonet predict", description=PURPOSES["predict"])
    parser.add_argument("checkpoint", type=str, help="a run folder, or a safetensors file")
    parser.add_argument("images", type=str, nargs="+", help="images, or folders of images")
    parser.add_argument("--top_k", type=int, default=3, help="classes for each image")
    parser.add_device()
    parser.add_format()
    parser.add_argument(
        "--output", type=str | None, help="a file to write to instead of the screen"
    )
    return parser
