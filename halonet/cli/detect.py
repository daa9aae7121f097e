"""halonet detect train | evaluate | predict: Mask R-CNN and Faster R-CNN."""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from halonet.cli.parser import (
    CommandParser,
    fail,
    find_options,
    list_given_images,
    make_table,
    overview,
)
from halonet.cli.pictures import PictureWriter, name_pictures
from halonet.cli.training import make_training_parser, parse_training, run_training
from halonet.devices import AUTO, find_device

PURPOSES = {
    "train": "train Mask R-CNN, or Faster R-CNN where no object has a mask",
    "evaluate": "score a detector by COCO's metrics",
    "predict": "find the objects in images, as pictures and as COCO's results",
}

CHECKPOINT = "a run folder, a safetensors file, or an ONNX file of halonet export"


def detect_command(words: Sequence[str]) -> None:
    """Run one of the commands of halonet detect."""
    name, *rest = [*words] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview("halonet detect", PURPOSES))
        return
    if name not in PURPOSES:
        fail(f"detect {name!r} is not a command; there are {', '.join(PURPOSES)}", 2)
    {"train": train_command, "evaluate": evaluate_command, "predict": predict_command}[name](rest)


def train_command(words: Sequence[str]) -> None:
    """Train a detector and print COCO's metrics."""
    parser = make_train_parser(find_options(words, "recipe")["recipe"] or "small_detector")
    fields = parse_training(parser, words)
    from halonet.detection.training import Detection

    result = run_training(Detection, fields)
    if result is None:
        return
    print(f"\n{make_metrics_table(result.evaluation.metrics)}")
    print(f"trained in {result.minutes:.1f} minutes; see {result.folder}")


def make_train_parser(recipe: str) -> CommandParser:
    """The options of `halonet detect train`, with a recipe's values as defaults."""
    from halonet.detection.recipes import get_detection_recipe

    return make_training_parser(
        "halonet detect train", PURPOSES["train"], get_detection_recipe(recipe)
    )


def evaluate_command(words: Sequence[str]) -> None:
    """Score a detector on held-out images, write the results and print COCO's metrics."""
    parser = make_evaluate_parser()
    options = parser.parse_words(words)
    from halonet.detection.data import PARTS, choose_part
    from halonet.detection.evaluate import detect_images, score
    from halonet.detection.training import DetectionEvaluation, write_summary
    from halonet.models.metadata import find_checkpoint
    from halonet.training.checkpoint import check_report_folder, choose_report_folder

    device = find_device(options.device)
    checkpoint = find_checkpoint(Path(options.checkpoint))
    output = Path(options.output or checkpoint.parent / "evaluation")
    check_report_folder(output, foreign="report.html")
    model = _read_detector(checkpoint, options.device, options.max_detections)
    data, part = _load_data(parser, options, checkpoint, model.options)
    scored = PARTS[part]
    data = choose_part(data, part)
    output = choose_report_folder(output, data.name, scored, free=options.output is None)
    results = detect_images(_prepare(model, device), data.validation, progress=True)
    metrics = score(data.validation, results, max_detections=model.options.detections)
    output.mkdir(parents=True, exist_ok=True)
    write_summary(output, model, data, DetectionEvaluation(metrics, results), scored=scored)
    print(make_metrics_table(metrics))
    if len(data.categories) > 1:
        kinds = {"box AP": metrics.box, "mask AP": metrics.mask}
        found = {kind: one.categories for kind, one in kinds.items() if one is not None}
        rows = [
            [category, *(_percent(one[category]) for one in found.values())]
            for category, ap in metrics.box.categories.items()
            if ap is not None
        ]
        print(f"\n{make_table(['category', *found], rows)}")
    print(f"results, summary and pictures are in {output}")


def _load_data(
    parser: CommandParser, options: Any, checkpoint: Path, detector: Any
) -> tuple[Any, str]:
    """The data that were asked for, or the run's, and which part of them is scored.

    Args:
        parser: of the command.
        options: its options.
        checkpoint: in a run folder or not.
        detector: its options, as `DetectorOptions`.
    """
    from halonet.detection.config import DetectionConfig, make_detection_config
    from halonet.detection.sources import is_same_data, load_detection_data
    from halonet.training.checkpoint import find_run, read_config

    run = find_run(checkpoint)
    if run is None and options.data is None:
        parser.error(f"{checkpoint} lies in no run folder: say which --data")
    config = DetectionConfig() if run is None else read_config(run, make_detection_config)
    masks = options.masks or config.masks
    if masks == "need" and not detector.has_masks:
        parser.error(f"{checkpoint} finds boxes alone: masks can't be needed")
    data = load_detection_data(
        options.data or config.data,
        validation_share=config.validation_share,
        masks=masks if detector.has_masks else "ignore",
        image_size=detector.image_size,
    )
    for line in data.describe():
        print(f"halonet: {line}", file=sys.stderr)
    # A share was held out by the training, of its own data alone.
    is_own = run is not None and (options.data is None or is_same_data(options.data, config.data))
    return data, options.split or ("val" if is_own or data.own_parts else "all")


def make_evaluate_parser() -> CommandParser:
    """The options of `halonet detect evaluate`."""
    parser = CommandParser(prog="halonet detect evaluate", description=PURPOSES["evaluate"])
    parser.add_argument("checkpoint", type=str, help=CHECKPOINT)
    parser.add_argument(
        "--data",
        type=str | None,
        help="as for halonet detect train; without it, what the run trained on",
    )
    parser.add_argument(
        "--split",
        type=Literal["train", "val", "all"] | None,
        help="images that are scored; without it val, or all of data that isn't the run's and has "
        "no held-out part",
    )
    parser.add_argument(
        "--masks",
        type=Literal["auto", "need", "ignore"] | None,
        help="as for halonet detect train; without it, as the run was trained",
    )
    parser.add_argument(
        "--max_detections",
        type=int | None,
        help="detections counted in each image; without it, all that the detector gives",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        help="folder of the results; evaluation beside the checkpoint, of other images "
        "evaluation-2, ...",
    )
    parser.add_device()
    return parser


def predict_command(words: Sequence[str]) -> None:
    """Write the objects in images, as pictures and as JSON, and print their number."""
    parser = make_predict_parser()
    options = parser.parse_words(words)
    if options.every < 1:
        parser.error(f"--every must be 1 or more, got {options.every}")
    from halonet.data.pixels import read_image
    from halonet.detection.predict import Objects, as_data_set, name_categories, predict
    from halonet.files import make_free_folder, require_empty, write_text
    from halonet.inference.images import read_frames
    from halonet.models.metadata import find_checkpoint

    device = find_device(options.device)
    if options.output is not None:
        require_empty(Path(options.output))
    checkpoint = find_checkpoint(Path(options.checkpoint))
    model = _prepare(_read_detector(checkpoint, options.device), device)
    pictures = name_pictures(options.images, list_given_images(options.images, videos=True))
    sources = read_frames(pictures, options.every)
    predictions = predict(model, sources, score_threshold=options.score_threshold)
    if options.output is None:
        output = make_free_folder(Path("predictions"))
    else:
        output = Path(options.output)
        output.mkdir(parents=True, exist_ok=True)
    number = number_images([*pictures])
    images: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    objects: Counter[Path] = Counter()
    places: dict[Path, str] = {}
    broken, stopped = 0, False
    with PictureWriter(output, pictures) as writer:
        try:
            for source, found in predictions:
                if not isinstance(found, Objects):
                    broken += 1
                    print(f"halonet: {found}", file=sys.stderr)
                    continue
                named: dict[str, Any] = {"file_name": str(source)}
                if found.time is not None:
                    named["time"] = round(found.time, 3)
                height, width = found.size
                image_id = number(source)
                images.append({"id": image_id, **named, "width": width, "height": height})
                results += [one | named for one in found.as_results(image_id)]
                picture = writer.write(source, found.draw(read_image(source)), found.time)
                places[picture] = str(source)
                objects[picture] += len(found.scores)
        except KeyboardInterrupt:  # as a camera ends
            stopped = True
    write_text(output / "predictions.json", json.dumps(results, indent=2) + "\n")
    rows = [[place, objects[picture], picture] for picture, place in places.items()]
    print(make_table(["image", "objects", "picture"], rows))
    print(f"COCO's results: {output / 'predictions.json'}")
    if options.data_set:
        content = as_data_set(images, results, name_categories(model))
        write_text(output / "data_set.json", json.dumps(content, indent=2) + "\n")
        print(f"a data set in COCO's format: {output / 'data_set.json'}")
    if stopped:
        fail("stopped", 130)
    if broken:
        fail(f"{broken} of {len(pictures)} images can't be read", 1)


def _read_detector(checkpoint: Path, device: str, detections: int | None = None) -> Any:
    """The detector of a checkpoint, or of a file that `halonet export` wrote.

    Raises:
        ValueError: another device, or number of detections, for an exported one.
    """
    if checkpoint.suffix != ".onnx":
        from halonet.detection.detector import load_detector

        changes: dict[str, Any] = {} if detections is None else {"detections": detections}
        return load_detector(checkpoint, **changes)
    from halonet.export.onnx_detector import load_onnx_detector

    if device not in (AUTO, "cpu"):
        raise ValueError(f"device must be auto or cpu for an exported file, got {device!r}")
    exported = load_onnx_detector(checkpoint)
    if detections not in (None, exported.options.detections):
        raise ValueError(
            f"max_detections of {checkpoint} is {exported.options.detections}, got {detections}"
        )
    return exported


def _prepare(model: Any, device: Any) -> Any:
    """A detector as it is run: fused, on the device; an exported one is both, on the CPU."""
    return model if not hasattr(model, "fuse") else model.fuse().to(device)


def number_images(images: Sequence[Any]) -> Callable[[Any], int]:
    """Gives the next image's id for COCO's results: its name, where all are numbers, else 1, 2, ...

    COCO's own images are called by their ids.

    Args:
        images: all that there are, videos among them.
    """
    stems = [image.stem if isinstance(image, Path) else "" for image in images]
    named = all(stem.isdecimal() and len(stem) < 19 for stem in stems)
    if named and len(set(map(int, stems))) == len(stems):
        return lambda image: int(image.stem)
    counter = itertools.count(1)
    return lambda image: next(counter)


def make_predict_parser() -> CommandParser:
    """The options of `halonet detect predict`."""
    parser = CommandParser(prog="halonet detect predict", description=PURPOSES["predict"])
    parser.add_argument("checkpoint", type=str, help=CHECKPOINT)
    parser.add_images(videos=True)
    parser.add_argument("--score_threshold", type=float, default=0.5, help="least score, 0 to 1")
    parser.add_argument(
        "--data_set",
        type=bool,
        default=False,
        help="write data_set.json too: the objects as annotations with ids, the images and the "
        "categories, as label tools read them",
    )
    parser.add_device()
    parser.add_argument(
        "--output",
        type=str | None,
        help="new or empty folder of the pictures and the JSON; without it predictions, or the "
        "next free",
    )
    return parser


def make_metrics_table(metrics: Any) -> str:
    """Box AP and any mask AP as in the paper's table, in percent."""
    header = ["AP", "all", "at 0.5", "at 0.75", "small", "medium", "large", "recall"]
    names = ("all", "at_50", "at_75", "small", "medium", "large", "recall")
    rows = [
        [kind, *(_percent(getattr(getattr(metrics, kind), name)) for name in names)]
        for kind in ("box", "mask")
        if getattr(metrics, kind) is not None
    ]
    note = f"{metrics.images} images, at most {metrics.max_detections} detections in each"
    return f"{make_table(header, rows)}\n{note}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
