"""Exported files beside their models: logits at eight sizes and three batches, random weights.

    python benchmarks/export_check.py --output benchmarks/results/export

writes each model to an ONNX file for any size (the two botnets take one), runs it in onnxruntime
and the model in torch, on random images, and writes a table of the largest differences.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import halonet
from halonet.cli.parser import make_table
from halonet.detection.detector import create_detector
from halonet.export.check import relative_difference
from halonet.export.description import describe
from halonet.export.onnx_classifier import open_session, run_session
from halonet.export.onnx_file import write_onnx
from halonet.export.pyramid import LEVELS, export_pyramid
from halonet.files import write_text
from halonet.models.timm_variants import TIMM_CHECKPOINTS

# Primes, smaller than a block at every stride, the smallest, a strip.
SIZES = ((32, 32), (32, 640), (33, 47), (61, 37), (97, 131), (113, 89), (64, 96), (199, 72))
BATCHES = (1, 2, 5)
FAMILY = (
    "halonet_tiny",
    *(f"halonet_h{number}" for number in range(4)),
    "halonet_50",
    "halonet_h4_base128_conv12",
)
LARGEST = 3e-6  # of the largest logit
PYRAMID = "resnet_50_se_halo8"  # of the detector whose pyramid is checked
LARGEST_OF_LEVELS = 5e-5


def main() -> None:
    """Check the models asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=[*FAMILY, *TIMM_CHECKPOINTS, PYRAMID])
    parser.add_argument("--output", type=Path, help="folder of the table")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        rows.append(check_pyramid(name) if name == PYRAMID else check_model(name))
        print(*rows[-1], sep="  ", flush=True)
    table = make_table(["model", "MB", "export, s", "largest difference", "at"], rows)
    print(table)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        write_text(options.output / "differences.txt", table + "\n")


def check_model(name: str) -> list[str]:
    """A row of the table.

    Raises:
        ValueError: logits that differ by more than `LARGEST`.
    """
    model = draw_model(name)
    fused = model.fuse()
    description = describe(
        model, precision="float32", with_preprocessing=False, command="benchmarks/export_check.py"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        started = time.process_time()
        write_onnx(fused, path, description, size=model.only_size, batch=None)
        seconds = time.process_time() - started
        session, size = open_session(path), path.stat().st_size
    numbers = torch.Generator().manual_seed(0)
    differences = {}
    sizes = SIZES if model.only_size is None else [model.only_size]
    for (height, width), batch in itertools.product(sizes, BATCHES):
        images = torch.randn(batch, model.in_channels, height, width, generator=numbers)
        with torch.inference_mode():
            expected = model(images)
        found = torch.from_numpy(run_session(session, images.numpy()))
        differences[f"{batch} x {height} x {width}"] = relative_difference(found, expected)
    worst = max(differences, key=lambda shape: differences[shape])
    if not differences[worst] <= LARGEST:
        raise ValueError(f"logits of {name} differ by {differences[worst]:.2g} at {worst}")
    return [name, f"{size / 1e6:.1f}", f"{seconds:.1f}", f"{differences[worst]:.1e}", worst]


def check_pyramid(name: str) -> list[str]:
    """A row of the table, of the levels of a detector's pyramid.

    Raises:
        ValueError: numbers that differ by more than `LARGEST_OF_LEVELS` of their level's largest.
    """
    torch.manual_seed(0)
    detector = draw_norms(create_detector(name))
    with tempfile.TemporaryDirectory() as folder:
        report = export_pyramid(detector, Path(folder) / "pyramid.onnx")
        session = open_session(report.path)
    numbers = torch.Generator().manual_seed(0)
    differences = {}
    for (height, width), batch in itertools.product(SIZES, BATCHES):
        images = torch.randn(batch, 3, height, width, generator=numbers)
        with torch.inference_mode():
            expected = detector.backbone(images)
        found = session.run(list(LEVELS), {"images": images.numpy()})
        differences[f"{batch} x {height} x {width}"] = max(
            relative_difference(torch.from_numpy(one), expected[level])
            for level, one in zip(LEVELS, found, strict=True)
        )
    worst = max(differences, key=lambda shape: differences[shape])
    if not differences[worst] <= LARGEST_OF_LEVELS:
        raise ValueError(f"levels of {name} differ by {differences[worst]:.2g} at {worst}")
    size, seconds = f"{report.bytes / 1e6:.1f}", f"{report.seconds:.1f} by the clock"
    return [f"{name} with pyramid", size, seconds, f"{differences[worst]:.1e}", worst]


def draw_model(name: str) -> Any:
    """A model of random weights and norms, in evaluation mode.

    The blocks of timm's add little to their shortcuts, as in a trained model: a deep random network
    of full residuals is chaotic, and makes any rounding large.
    """
    torch.manual_seed(0)
    model: Any = halonet.create_model(name, num_classes=1000)
    return draw_norms(model)


def draw_norms(model: Any) -> Any:
    """Random norms in place, in evaluation mode."""
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            share = 0.2 if path.endswith("conv3_1x1.bn") else 1.0
            nn.init.uniform_(module.weight, 0.5 * share, 1.5 * share)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


if __name__ == "__main__":
    main()
