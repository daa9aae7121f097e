"""The command line: halonet train | evaluate | predict | models."""

import dataclasses
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jsonargparse import ArgumentParser, Namespace

from halonet.models.flops import count_flops
from halonet.models.pretrained import load_model
from halonet.models.variants import VARIANTS


class CommandParser(ArgumentParser):
    """Says what is wrong in one line, and takes --image-size for --image_size."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        _fail(f"{_one_line(message)} (see {self.prog} --help)", 2)

    def parse_words(self, words: Sequence[str]) -> Namespace:
        """Parse what the user typed after the command's name."""
        return self.parse_args([_with_underscores(word) for word in words])


class Command(NamedTuple):
    """What a command is for, and what runs it."""

    purpose: str
    run: Callable[[Sequence[str]], None]


def main(words: Sequence[str] | None = None) -> None:
    """Run one command.

    Exits with 0, 1 where it failed, 2 where it was called wrongly, or 130 where it was stopped;
    an error is one line on standard error.
    """
    name, *rest = [*(sys.argv[1:] if words is None else words)] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_overview())
        return
    if name == "--version":
        print(f"halonet {version('halonet')}")
        return
    if name not in COMMANDS:
        _fail(f"{name!r} is not a command; there are {', '.join(COMMANDS)}", 2)
    # Pillow warns of damaged metadata; the pixels decide.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        COMMANDS[name].run(rest)
        sys.stdout.flush()
    except BrokenPipeError:  # who read has left, as head does
        _drop_output()
        sys.exit(1)
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except ModuleNotFoundError as error:
        if error.name is None:
            _fail(_one_line(error), 1)
        _fail(
            f"{error.name} is not installed; pip install 'halonet[train]' brings what training "
            "needs",
            1,
        )
    except OSError as error:
        if error.filename is None or error.strerror is None:
            _fail(_one_line(error), 1)
        _fail(f"{error.filename}: {error.strerror}", 1)
    except (ValueError, NotImplementedError, MemoryError) as error:
        _fail(_one_line(error), 1)


def train_command(words: Sequence[str]) -> None:
    """halonet train"""
    parser = make_train_parser(_recipe_name(words))
    fields = parser.parse_words(words).as_dict()
    output, run = fields.pop("output"), fields.pop("resume")
    if run is not None and len(words) > (1 if "=" in words[0] else 2):
        parser.error("--resume takes its configuration from the run and allows no other option")
    from accelerate import PartialState

    from halonet.training.classification import resume, train
    from halonet.training.config import make_config
    from halonet.training.loop import LossNotFinite, TrainingInterrupted
    from halonet.training.parallel import ProcessLost

    try:
        result = train(make_config(fields), output=output) if run is None else resume(Path(run))
    except (TrainingInterrupted, LossNotFinite, ProcessLost) as stopped:
        _fail(_one_line(stopped), 130 if isinstance(stopped, TrainingInterrupted) else 1)
    if not PartialState().is_main_process:
        return
    accuracy, majority = result.evaluation.accuracy, result.data.majority_share
    print(
        f"\nheld-out accuracy {100 * accuracy:.1f} % of {len(result.data.validation.labels)} images"
    )
    print(f"always answering the most frequent class: {100 * majority:.1f} %")
    if result.data.note:
        print(result.data.note)
    print(f"trained in {result.minutes:.1f} minutes; open {result.folder / 'report.html'}")


def make_train_parser(recipe: str) -> CommandParser:
    """The options of `halonet train`, their defaults from a recipe."""
    from halonet.training.config import TrainingConfig
    from halonet.training.recipes import RECIPES, get_recipe

    parser = CommandParser(prog="halonet train", description=COMMANDS["train"].purpose)
    parser.add_argument(
        "--output",
        type=str | None,
        help="the run's folder; without it runs/RECIPE, or the next free",
    )
    parser.add_argument(
        "--resume", type=str | None, help="folder of a run to go on with, from its last saved step"
    )
    parser.add_class_arguments(TrainingConfig, as_group=False)
    parser.set_defaults(dataclasses.asdict(get_recipe(recipe)))
    parser.epilog = f"recipes: {', '.join(RECIPES)}"
    return parser


def _recipe_name(words: Sequence[str]) -> str:
    """The recipe asked for; without one, elpv for its own data and small for any other."""
    data = "elpv"
    for option, value in re.findall(r"--(recipe|data)[= ](\S+)", " ".join(words)):
        if option == "recipe":
            return value
        data = value
    return "elpv" if data == "elpv" else "small"


def evaluate_command(words: Sequence[str]) -> None:
    """halonet evaluate"""
    parser = make_evaluate_parser()
    options = parser.parse_words(words)
    from halonet.training.checkpoint import find_checkpoint, find_run, read_config
    from halonet.training.config import TrainingConfig, make_config
    from halonet.training.data import load_data
    from halonet.training.evaluate import evaluate_on
    from halonet.training.report import write_report

    checkpoint = find_checkpoint(Path(options.checkpoint))
    run = find_run(checkpoint)
    config = None if run is None else read_config(run, make_config)
    if options.data is None and config is None:
        parser.error(f"{checkpoint} lies in no run folder: say which --data")
    config = config or TrainingConfig()
    given = {name: options[name] for name in ("data", "data_root", "validation_share")}
    config = dataclasses.replace(
        config, **{name: value for name, value in given.items() if value is not None}
    )
    data = load_data(
        config.data, data_root=config.data_root, validation_share=config.validation_share
    )
    model = load_model(checkpoint)
    evaluation = evaluate_on(model, data)
    output = Path(options.output or checkpoint.parent / "evaluation")
    output.mkdir(parents=True, exist_ok=True)
    write_report(output, model, data, evaluation)
    print(f"accuracy {100 * evaluation.accuracy:.1f} % of {len(data.validation.labels)} images")
    print(f"loss {evaluation.loss:.3f}")
    print(f"always answering the most frequent class: {100 * data.majority_share:.1f} %")
    counts = evaluation.class_images.tolist(), evaluation.class_right.tolist()
    rows = [
        [name, images, f"{100 * right / max(1, images):.1f} %"]
        for name, images, right in zip(data.class_names, *counts, strict=True)
    ]
    print(_table(["class", "images", "right"], rows))
    print(f"open {output / 'report.html'}")


def make_evaluate_parser() -> CommandParser:
    """The options of `halonet evaluate`."""
    parser = CommandParser(prog="halonet evaluate", description=COMMANDS["evaluate"].purpose)
    parser.add_argument("checkpoint", type=str, help="a run folder, or a safetensors file")
    parser.add_argument(
        "--data", type=str | None, help="as for train; without it, the data that the run trained on"
    )
    parser.add_argument("--data_root", type=str | None, help="where torchvision's data sets lie")
    parser.add_argument(
        "--validation_share",
        type=float | None,
        help="share held out of a folder without train, val",
    )
    parser.add_argument(
        "--output", type=str | None, help="folder of the report; evaluation beside the checkpoint"
    )
    return parser


def predict_command(words: Sequence[str]) -> None:
    """halonet predict"""
    parser = make_predict_parser()
    options = parser.parse_words(words)
    if options.top_k < 1:
        parser.error(f"--top_k must be 1 or more, got {options.top_k}")
    if options.format not in ("table", "json"):
        parser.error(f"--format must be table or json, got {options.format!r}")
    from halonet.training.checkpoint import find_checkpoint, write_text
    from halonet.training.data import find_images
    from halonet.training.evaluate import predict

    model = load_model(find_checkpoint(Path(options.checkpoint)))
    names = model.class_names or tuple(str(index) for index in range(model.num_classes))
    if options.output is not None and not Path(options.output).parent.is_dir():
        raise FileNotFoundError(f"no folder at {Path(options.output).parent}")
    paths: list[Path] = []
    for given in map(Path, options.images):
        found = find_images(given) if given.is_dir() else [given]
        if not found:
            raise ValueError(f"{given} holds no images")
        paths += found

    answers, broken = [], 0
    for path, probabilities in predict(model, paths):
        if isinstance(probabilities, str):
            broken += 1
            print(f"halonet: {probabilities}", file=sys.stderr)
            continue
        best = probabilities.topk(min(options.top_k, len(names)))
        answers.append(
            {
                "image": str(path),
                "predictions": [
                    {"class": names[index], "probability": round(probability, 6)}
                    for probability, index in zip(*(part.tolist() for part in best), strict=True)
                ],
            }
        )
    text = json.dumps(answers, indent=2) if options.format == "json" else _answer_table(answers)
    if options.output is None:
        print(text)
    else:
        write_text(Path(options.output), text + "\n")
    if broken:
        _fail(f"{broken} of {len(paths)} images can't be read", 1)


def _answer_table(answers: Sequence[dict]) -> str:
    rows = [
        [
            answer["image"],
            ", ".join(
                f"{one['class']} {100 * one['probability']:.1f} %" for one in answer["predictions"]
            ),
        ]
        for answer in answers
    ]
    return _table(["image", "predictions"], rows)


def make_predict_parser() -> CommandParser:
    """The options of `halonet predict`."""
    parser = CommandParser(prog="halonet predict", description=COMMANDS["predict"].purpose)
    parser.add_argument("checkpoint", type=str, help="a run folder, or a safetensors file")
    parser.add_argument("images", type=str, nargs="+", help="images, or folders of images")
    parser.add_argument("--top_k", type=int, default=3, help="answers for each image")
    parser.add_argument("--format", type=str, default="table", help="table or json")
    parser.add_argument(
        "--output", type=str | None, help="a file to write to instead of the screen"
    )
    return parser


def models_command(words: Sequence[str]) -> None:
    """halonet models"""
    parser = make_models_parser()
    options = parser.parse_words(words)
    if options.format not in ("table", "json"):
        parser.error(f"--format must be table or json, got {options.format!r}")
    try:
        most_parameters, most_flops = _number(options.max_parameters), _number(options.max_flops)
    except ValueError as error:
        parser.error(str(error))
    found: list[dict[str, Any]] = []
    for variant in VARIANTS.values():
        size = options.image_size or variant.image_size
        entry = {
            "name": variant.name,
            "parameters": variant.parameters,
            "flops": count_flops(variant, size),
            "image_size": size,
            "source": variant.source,
        }
        too_large = (
            (variant.parameters or 0) > most_parameters
            or entry["flops"] > most_flops
            or (options.max_image_size is not None and size > options.max_image_size)
        )
        if not too_large:
            found.append(entry)
    if options.format == "json":
        print(json.dumps(found, indent=2))
        return
    rows = [
        [
            entry["name"],
            f"{entry['parameters'] / 1e6:.2f}",
            f"{entry['flops'] / 1e9:.2f}",
            entry["image_size"],
            entry["source"],
        ]
        for entry in found
    ]
    print(_table(["model", "parameters, M", "GFLOPs", "image", "source"], rows))
    print("FLOPs of one image, a multiply-add counting as two; parameters with 1000 classes.")


def make_models_parser() -> CommandParser:
    """The options of `halonet models`."""
    parser = CommandParser(prog="halonet models", description=COMMANDS["models"].purpose)
    parser.add_argument("--max_parameters", type=str | None, help="at most so many, as 10M")
    parser.add_argument("--max_flops", type=str | None, help="at most so many, as 6G")
    parser.add_argument(
        "--max_image_size", type=int | None, help="at most so many pixels on a side"
    )
    parser.add_argument(
        "--image_size", type=int | None, help="count FLOPs at this size, not at each model's own"
    )
    parser.add_argument("--format", type=str, default="table", help="table or json")
    return parser


COMMANDS = {
    "train": Command("train a model on images, evaluate it, show predictions", train_command),
    "evaluate": Command("score a checkpoint on held-out images", evaluate_command),
    "predict": Command("say what is in images", predict_command),
    "models": Command("list the models with parameters and FLOPs", models_command),
}


def _overview() -> str:
    lines = ["usage: halonet COMMAND [options]", ""]
    lines += [f"  {name:9} {command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "halonet COMMAND --help lists a command's options."])


def _number(text: str | None) -> float:
    """`10M` as 10,000,000; no text as infinity."""
    if text is None:
        return float("inf")
    match = re.fullmatch(r"([0-9.]+)([KMG]?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"expected a number such as 10M or 6G, got {text!r}")
    return float(match[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[match[2].upper()]


def _table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
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


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _fail(reason: str, status: int) -> NoReturn:
    print(f"halonet: {reason}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    sys.exit(status)


def _drop_output() -> None:
    """Send nowhere what waits in standard output: flushing it at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
