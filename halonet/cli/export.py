"""halonet export: a model for other runtimes."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from halonet.cli.parser import CommandParser

PURPOSE = "write a model as a file for other runtimes, checked beside it"


def export_command(words: Sequence[str]) -> None:
    """Write the file, and print how far its logits are from the model's."""
    parser = make_export_parser()
    options = parser.parse_words(words)
    from halonet.export.graph import OPSET

    size = _parse_numbers(parser, "size", options.size, 2)
    batch = _parse_numbers(parser, "batch", options.batch, 1)
    from halonet.export.formats import SUFFIXES
    from halonet.export.terms import find_license
    from halonet.inference.loading import is_detector
    from halonet.models.metadata import find_checkpoint
    from halonet.models.pretrained import load_model

    if options.format == "web" and (size, batch, options.opset) != (None, None, OPSET):
        parser.error(
            "--size, --batch and --opset don't go with --format web, which takes any photo"
        )
    checkpoint = find_checkpoint(Path(options.checkpoint))
    facts = {
        "command": shlex.join(["halonet", "export", *words]),
        "license": options.license or find_license(checkpoint),
    }
    if is_detector(checkpoint):
        given = (options.format, options.precision, options.with_preprocessing, size, batch)
        if (*given, options.opset) != ("onnx", "float32", False, None, None, OPSET):
            parser.error(
                "a detector's file takes a photo of any size, in onnx and float32: of the options "
                "only --license and --output go with it"
            )
        from halonet.detection.detector import load_detector
        from halonet.export.detector import export_detector

        path = options.output or checkpoint.with_suffix(SUFFIXES["onnx"])
        report = export_detector(load_detector(checkpoint), path, **facts)
        _print_report(report, facts, "photo's side, score and mask")
    elif options.format == "web":
        from halonet.export.browser import write_page

        folder = Path(options.output or checkpoint.parent / "web")
        report = write_page(load_model(checkpoint), folder, precision=options.precision, **facts)
        _print_report(report, facts)
        print(f"to see the page, in {folder}: npm install && python -m http.server")
    else:
        _export_classifier(checkpoint, options, size, batch, facts)


def _export_classifier(
    checkpoint: Path,
    options: Any,
    size: list[int] | None,
    batch: list[int] | None,
    facts: dict[str, Any],
) -> None:
    """Write a classifier's file, one of int8 with its accuracy beside the model's."""
    from halonet.export.formats import SUFFIXES, export_model
    from halonet.models.pretrained import load_model

    model = load_model(checkpoint)
    if model.only_size is not None:
        height, width = model.only_size
        print(
            f"{model.variant.name} takes images of {height} x {width} pixels only, as the file will"
        )
    if options.format == "aoti":
        print("the file needs `import halonet` before it is loaded, and this kind of processor")
        if size is None and model.only_size is None:
            print("compiling takes minutes, several times less with --size and --batch", flush=True)
    data = calibration = None
    broken_share = 0.0
    if options.precision == "int8":
        from halonet.export.quantization import CALIBRATION_IMAGES, choose_calibration_images

        data, broken_share = load_run_data(checkpoint, model, "int8 is calibrated on")
        calibration = choose_calibration_images(model, data.training, CALIBRATION_IMAGES)
        few = f", of which there should be {CALIBRATION_IMAGES}"
        count = len(calibration)
        print(
            f"int8 is calibrated on {count} training images"
            f"{few if count < CALIBRATION_IMAGES else ''}",
            flush=True,
        )
    report = export_model(
        model,
        options.output or checkpoint.with_suffix(SUFFIXES[options.format]),
        format=options.format,
        size=None if size is None else (size[0], size[1]),
        batch=None if batch is None else batch[0],
        precision=options.precision,
        with_preprocessing=options.with_preprocessing,
        calibration=calibration,
        opset=options.opset,
        **facts,
    )
    _print_report(report, facts)
    if data is not None:
        _print_accuracies(model, report.path, data, broken_share)


def _print_report(report: Any, facts: dict[str, Any], scale: str = "largest logit") -> None:
    differences = ", ".join(f"{one:.1e} ({shape})" for shape, one in report.differences.items())
    print(f"{report.path}: {report.bytes / 1e6:.1f} MB, written in {report.seconds:.1f} s")
    print(f"difference from the model, of the {scale}: {differences}")
    print(f"license that the file names: {facts['license'] or 'none is known; --license says one'}")


def load_run_data(checkpoint: Path, model: Any, purpose: str) -> tuple[Any, float]:
    """The data of the run that a checkpoint lies in, and its `broken_share`.

    Raises:
        ValueError: it lies in none; its images have this purpose.
    """
    from halonet.classification.config import make_config
    from halonet.training.checkpoint import find_run, read_config

    run = find_run(checkpoint)
    if run is None:
        raise ValueError(f"{checkpoint} lies in no run folder, whose images {purpose}")
    config = read_config(run, make_config)
    data = config.load_data(model.task)
    if model.class_names is not None:
        data = data.with_classes(model.class_names)
    return data, config.broken_share


def _print_accuracies(model: Any, path: Path, data: Any, broken_share: float) -> None:
    """What the held-out images say of the model, and of its file."""
    from halonet.classification.evaluate import evaluate_on
    from halonet.export.onnx_classifier import load_onnx

    both: list[Any] = [model.fuse(), load_onnx(path)]
    before, after = (evaluate_on(one, data, broken_share=broken_share).figures for one in both)
    for name, value in before.items():
        if name != "loss":
            print(
                f"{name.replace('_', ' ')} on {len(data.validation)} held-out images: "
                f"{100 * value:.2f} % of the model, {100 * after[name]:.2f} % of the file"
            )


def make_export_parser() -> CommandParser:
    """The options of `halonet export`."""
    parser = CommandParser(prog="halonet export", description=PURPOSE)
    parser.add_argument("checkpoint", type=str, help="a run folder, or a safetensors file")
    parser.add_argument(
        "--format",
        type=Literal["onnx", "openvino", "torch-export", "aoti", "web"],
        default="onnx",
        help="of the file; openvino's weights are beside it, in .bin; torch-export's and aoti's, "
        "which AOTInductor compiles, need torch and `import halonet` to run; web makes a folder "
        "with a page that runs the model in the browser",
    )
    parser.add_argument(
        "--size",
        type=str,
        default="any",
        help="any, or height and width of all images in pixels, as 224,320",
    )
    parser.add_argument("--batch", type=str, default="any", help="any, or the number of images")
    parser.add_argument(
        "--precision",
        type=Literal["float32", "float16", "int8"],
        default="float32",
        help="of weights and activations; int8 is calibrated on the run's own images",
    )
    parser.add_argument(
        "--with_preprocessing",
        type=bool,
        default=False,
        help="take photos as bytes, of any size; resize and normalize them in the graph",
    )
    parser.add_argument(
        "--opset",
        type=Literal[18, 23],
        default=23,
        help="version of ONNX's operators; 18 for onnxruntime before 1.23, OpenVINO before 2026.2",
    )
    parser.add_argument(
        "--license",
        type=str | None,
        help="of the weights, for the metadata; without it the terms of what the run started from "
        "and trained on, where they are known",
    )
    parser.add_argument(
        "--output",
        type=str | None,
        help="the file or, of web, the folder, a new one; beside the checkpoint by default",
    )
    return parser


def _parse_numbers(parser: CommandParser, name: str, text: str, count: int) -> list[int] | None:
    """So many whole numbers between commas; None for any."""
    if text == "any":
        return None
    parts = text.split(",")
    if len(parts) != count or not all(part.strip().isdecimal() for part in parts):
        expected = "a height and a width, as 224,320" if count == 2 else "a number"
        parser.error(f"--{name} must be any, or {expected}; got {text!r}")
    return [int(part) for part in parts]
