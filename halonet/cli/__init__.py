"""The command line: halonet COMMAND."""

import io
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

from torch import OutOfMemoryError

from halonet.allocator import keep_freed_memory
from halonet.cli import (
    benchmark,
    check,
    classification,
    compare,
    demo,
    detect,
    embeddings,
    explain,
    export,
    models,
    recipes,
    shards,
)
from halonet.cli.parser import drop_output, fail, one_line, overview
from halonet.openmp import watch_neighbours


class Command(NamedTuple):
    """A command's purpose, as the overview shows it, and its function."""

    purpose: str
    run: Callable[[Sequence[str]], None]


def main(words: Sequence[str] | None = None) -> None:
    """Run one command.

    Exits with status 1 where it fails, 2 where it is called wrongly, and 130 where it is stopped;
    an error is one line on standard error.
    """
    name, *rest = [*(sys.argv[1:] if words is None else words)] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview("halonet", {word: one.purpose for word, one in COMMANDS.items()}))
        return
    if name == "--version":
        print(f"halonet {version('halonet')}")
        return
    if name not in COMMANDS:
        fail(f"{name!r} is not a command; there are {', '.join(COMMANDS)}", 2)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files needn't be Unicode
        sys.stdout.reconfigure(errors="backslashreplace")
    # Pillow warns of damaged metadata; the pixels decide.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    keep_freed_memory()
    watch_neighbours()
    try:
        COMMANDS[name].run(rest)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the pipe, as head does
        drop_output()
        sys.exit(1)
    except KeyboardInterrupt:
        fail("stopped", 130)
    except ModuleNotFoundError as error:
        if error.name is None:
            fail(one_line(error), 1)
        extra = EXTRAS.get(error.name.partition(".")[0], "train")
        fail(f"{error.name} is not installed: pip install 'halonet[{extra}]'", 1)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            fail(one_line(error), 1)
        fail(f"{error.filename}: {error.strerror}", 1)
    except (ValueError, NotImplementedError, MemoryError, OutOfMemoryError) as error:
        fail(one_line(error), 1)


# The extras that install packages; those that aren't named are in train.
EXTRAS = {
    "av": "video",
    "datasets": "data",
    "pyarrow": "data",
    "faster_coco_eval": "detection",
    "gradio": "demo",
    "huggingface_hub": "hub",
    "onnx": "export",
    "onnxruntime": "export",
    "openvino": "openvino",
}

COMMANDS = {
    "train": Command(classification.PURPOSES["train"], classification.train_command),
    "evaluate": Command(classification.PURPOSES["evaluate"], classification.evaluate_command),
    "predict": Command(classification.PURPOSES["predict"], classification.predict_command),
    "export": Command(export.PURPOSE, export.export_command),
    "benchmark": Command(benchmark.PURPOSE, benchmark.benchmark_command),
    "detect": Command(
        "Mask R-CNN and Faster R-CNN: train, evaluate, predict", detect.detect_command
    ),
    "explain": Command(explain.PURPOSE, explain.explain_command),
    "embed": Command(embeddings.PURPOSES["embed"], embeddings.embed_command),
    "similar": Command(embeddings.PURPOSES["similar"], embeddings.similar_command),
    "demo": Command(demo.PURPOSE, demo.demo_command),
    "shards": Command(shards.PURPOSE, shards.shards_command),
    "compare": Command(compare.PURPOSE, compare.compare_command),
    "models": Command(models.PURPOSE, models.models_command),
    "recipes": Command(recipes.PURPOSE, recipes.recipes_command),
    "check": Command(check.PURPOSE, check.check_command),
}
