"""A folder with a page that runs a classifier in the browser: onnxruntime-web, no server's help."""

import dataclasses
import json
import os
import shutil
from importlib.resources import files
from pathlib import Path

from halonet.export.description import describe
from halonet.export.formats import ExportReport, export_model
from halonet.files import require_empty
from halonet.models.classifier import Classifier

MODEL = "model.onnx"


def write_page(
    model: Classifier,
    folder: str | os.PathLike[str],
    *,
    precision: str = "float32",
    command: str = "halonet.export.browser.write_page",
    license: str | None = None,  # noqa: A002 - the usual name
) -> ExportReport:
    """Write the page, its scripts and the model, checked as `export_model` checks it.

    `npm install` in the folder fetches onnxruntime-web, whose version package.json names; then
    any web server shows the page.

    Args:
        model: a `HaloNet` or one of timm's HaloNets, neither fused nor compiled; it stays as it is.
        folder: a new one, or empty.
        precision: of the model, "float32" or "float16".
        command: that the metadata names.
        license: of the weights, in words, for the metadata.

    Raises:
        FileExistsError: the folder has something in it.
        ValueError, TypeError, OSError, ModuleNotFoundError: as of `export_model`.
    """
    folder = Path(folder)
    if precision == "int8":
        raise ValueError("precision of a page must be float32 or float16, got 'int8'")
    require_empty(folder)
    temporary = folder.with_name(f".{os.getpid()}.tmp.{folder.name}")
    temporary.mkdir(parents=True)
    try:
        report = export_model(
            model,
            temporary / MODEL,
            precision=precision,
            with_preprocessing=True,
            command=command,
            license=license,
        )
        facts = describe(
            model, precision=precision, with_preprocessing=True, command=command, license=license
        )
        text = json.dumps(dataclasses.asdict(facts), indent=2) + "\n"
        (temporary / "model.json").write_text(text, encoding="utf-8")
        for part in files("halonet.export").joinpath("page").iterdir():
            (temporary / part.name).write_bytes(part.read_bytes())
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return dataclasses.replace(report, path=folder / MODEL)
