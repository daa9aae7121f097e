"""halonet compare: runs side by side."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halonet.cli.parser import CommandParser, make_table

PURPOSE = "runs side by side: scores, what differs in them, curves"


def compare_command(words: Sequence[str]) -> None:
    """Print a line for each run, and draw their curves."""
    parser = make_compare_parser()
    options = parser.parse_words(words)
    from halonet.files import check_picture_file, require_new_file
    from halonet.training.compare import choose_score, compare_runs, draw_curves, read_run

    output = None if options.output is None else Path(options.output)
    if output is not None:
        check_picture_file(output)
        require_new_file(output)
    runs = [read_run(Path(folder)) for folder in options.runs]
    outcomes = compare_runs(runs, choose_score(runs, options.score))
    if output is not None:
        draw_curves(runs, output)
    if options.format == "json":
        print(json.dumps([dataclasses.asdict(outcome) for outcome in outcomes], indent=2))
        return
    score = (outcomes[0].score or "score").replace("_", " ")
    header = ["run", "model", "parameters, M", "epochs", f"best {score}", f"last {score}"]
    header += ["training loss", "held-out loss", "minutes", "what differs"]
    print(make_table(header, [_make_row(outcome) for outcome in outcomes]))
    for outcome in outcomes:
        if not outcome.epochs:
            print(f"{outcome.run} has no finished epoch yet")
    if output is not None:
        print(f"open {output}")


def _make_row(outcome: Any) -> list[str]:
    parameters, best = outcome.parameters, _show_share(outcome.best)
    if outcome.best_epoch is not None:
        best += f" (epoch {outcome.best_epoch})"
    differences = (
        f"{name} {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in outcome.differences.items()
    )
    return [
        outcome.run,
        outcome.model,
        "-" if parameters is None else f"{parameters / 1e6:.2f}",
        f"{outcome.epochs}/{outcome.epochs_planned}",
        best,
        _show_share(outcome.last),
        "-" if outcome.training_loss is None else f"{outcome.training_loss:.3f}",
        "-" if outcome.validation_loss is None else f"{outcome.validation_loss:.3f}",
        "-" if outcome.minutes is None else f"{outcome.minutes:.1f}",
        ", ".join(differences) or "-",
    ]


def _show_share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def make_compare_parser() -> CommandParser:
    """The options of `halonet compare`."""
    parser = CommandParser(prog="halonet compare", description=PURPOSE)
    parser.add_argument("runs", type=str, nargs="+", help="folders of runs of one task")
    parser.add_argument(
        "--score", type=str | None, help="as accuracy or box_ap; the first that all runs have"
    )
    parser.add_format()
    parser.add_argument(
        "--output", type=str | None, help="a new picture of the curves: .png, .svg or .pdf"
    )
    return parser
