"""The command line: halonet COMMAND."""

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NamedTuple

from halonet.cli import classification, compare, detect, models, recipes, shards
from halonet.cli.parser import drop_output, fail, one_line, overview


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
        print(overview("halonet", {word: one.purpose for word, one in COMMANDS.items()}))
        return
    if name == "--version":
        print(f"halonet {version('halonet')}")
        return
    if name not in COMMANDS:
        fail(f"{name!r} is not a command; there are {', '.join(COMMANDS)}", 2)
    # Pillow warns of damaged metadata; the pixels decide.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        COMMANDS[name].run(rest)
        sys.stdout.flush()
    except BrokenPipeError:  # who read has left, as head does
        drop_output()
        sys.exit(1)
    except KeyboardInterrupt:
        fail("stopped", 130)
    except ModuleNotFoundError as error:
        if error.name is None:
            fail(one_line(error), 1)
        extra = EXTRAS.get(error.name.partition(".")[0], "train")
        fail(f"{error.name} is not installed; pip install 'halonet[{extra}]' brings it", 1)
    except OSError as error:
        if error.filename is None or error.strerror is None:
            fail(one_line(error), 1)
        fail(f"{error.filename}: {error.strerror}", 1)
    except (ValueError, NotImplementedError, MemoryError) as error:
        fail(one_line(error), 1)


# What brings a package that isn't there; train brings the rest.
EXTRAS = {"datasets": "data", "faster_coco_eval": "detection"}

COMMANDS = {
    "train": Command(classification.PURPOSES["train"], classification.train_command),
    "evaluate": Command(classification.PURPOSES["evaluate"], classification.evaluate_command),
    "predict": Command(classification.PURPOSES["predict"], classification.predict_command),
    "detect": Command("Mask R-CNN: train, evaluate, predict", detect.detect_command),
    "shards": Command(shards.PURPOSE, shards.shards_command),
    "compare": Command(compare.PURPOSE, compare.compare_command),
    "models": Command(models.PURPOSE, models.models_command),
    "recipes": Command(recipes.PURPOSE, recipes.recipes_command),
}
