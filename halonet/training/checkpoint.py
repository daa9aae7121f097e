"""The run folder: its configuration, its checkpoints, and the state to resume from."""

import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)

from halonet.data.listing import Listing
from halonet.files import make_free_folder, write_atomically, write_text
from halonet.models.metadata import HUB_NAME, find_misfit
from halonet.training.changed_data import describe_change, pack_listing, unpack_listing
from halonet.training.config import Config, RunConfig, modernize_fields

CONFIG_NAME = "config.json"

METRICS_NAME = "metrics.csv"

STATE_FOLDER = "state"


class Resumable(Protocol):
    """What a state is made of: all that the next step depends on."""

    config: RunConfig
    accelerator: Accelerator
    model: nn.Module
    prepared_model: nn.Module
    prepared_optimizer: AcceleratedOptimizer
    average: ModelEmaV3
    progress: dict[str, Any]
    listing: Listing | None  # of the data, as they are now
    allow_changed_data: bool


def check_output(output: str) -> None:
    """Raise FileExistsError unless `output` is absent or an empty folder."""
    folder = Path(output)
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.is_dir() and (folder / CONFIG_NAME).is_file():
        raise FileExistsError(
            f"{folder} holds a run already; go on with --resume {folder}, "
            "or choose another --output"
        )
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another --output")


def check_report_folder(folder: Path, foreign: str) -> None:
    """Raise FileExistsError unless a report can go there: to a new folder, or an earlier report's.

    Args:
        folder: of the report.
        foreign: a file that the reports of another task have, and this one's don't.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if CONFIG_NAME in names:
        raise FileExistsError(
            f"{folder} is a run and has the report of its training; choose another --output"
        )
    taken = names or (folder.exists() and not folder.is_dir())
    if taken and ("summary.json" not in names or foreign in names):
        raise FileExistsError(
            f"{folder} exists already and has no report of this command; choose another --output"
        )


def choose_report_folder(folder: Path, data: str, scored: str, *, free: bool) -> Path:
    """The folder for a report over some images; no report over others is replaced.

    Args:
        folder: as `check_report_folder` allows it.
        data, scored: what the report's summary.json calls the data, and the images of it.
        free: take the first of NAME-2, NAME-3, ... where `folder` has a report over others.

    Raises:
        FileExistsError: it has one, and no other folder may be taken.
    """
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        summary = place / "summary.json"
        if not summary.is_file():
            if number == 1 or not place.exists():
                return place
            continue
        try:
            content = json.loads(summary.read_text(encoding="utf-8"))
        except ValueError:  # damaged, as by an editor
            content = {}
        found = content.get("data", data), content.get("scored", scored)
        if found == (data, scored):
            return place
        if not free:
            raise FileExistsError(
                f"{folder} has a report on {found[1]} of {found[0]}; choose another --output"
            )
    raise AssertionError


def new_run_folder(output: str | None, default: str) -> Path:
    """Create the folder of a new run: `output`, or the first free of runs/NAME, runs/NAME-2, ...

    Raises:
        FileExistsError: `output` exists and holds something.
    """
    if output is not None:
        check_output(output)
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    return make_free_folder(Path("runs", default))


def write_config(folder: Path, config: RunConfig) -> None:
    """Write a run's whole configuration into its folder."""
    write_text(folder / CONFIG_NAME, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def read_config(folder: Path, make: Callable[[Mapping[str, Any]], Config]) -> Config:
    """The configuration of the run in `folder`, made by its task's `make`.

    Raises:
        FileNotFoundError: there is no run. ValueError: its configuration can't be read.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no run at {folder}: it has no {CONFIG_NAME}")
    try:
        return make(modernize_fields(json.loads(path.read_text(encoding="utf-8"))))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a run's configuration: {error}") from None


def save_state(folder: Path, run: Resumable) -> None:
    """Write all that the next step depends on, whole or not at all, and drop older states.

    Weights and optimizer are written whole, so that any number of processes can go on with them.

    Raises:
        OSError: it can't be written; an earlier state is left as it was.
    """
    model, optimizer = get_state_dict(
        run.prepared_model, run.prepared_optimizer.optimizer, options=_WHOLE
    )
    if not run.accelerator.is_main_process:
        return
    scaler = run.accelerator.scaler
    content = {
        "model": model,
        "optimizer": optimizer,
        "average": run.average.state_dict() if run.config.averaging_decay else None,
        "scaler": None if scaler is None else scaler.state_dict(),
        "progress": json.dumps(run.progress),
        "data": None if run.listing is None else pack_listing(run.listing),
    }
    states = folder / STATE_FOLDER
    states.mkdir(exist_ok=True)
    before = find_states(folder)
    final = states / f"step_{run.progress['step']:09d}.pt"
    try:
        write_atomically(final, lambda temporary: torch.save(content, temporary))
    except (OSError, RuntimeError) as error:  # torch has its own complaint about a full disk
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        kept = f"{before[-1]} is kept" if before else "no earlier state is there"
        raise OSError(f"can't write {final}: {reason}; {kept}") from None
    for older in states.iterdir():  # among them what a killed run left half written
        if older != final:
            older.unlink(missing_ok=True)


def find_states(folder: Path) -> list[Path]:
    """The states of a run, oldest first."""
    states = folder / STATE_FOLDER
    if not states.is_dir():
        return []
    return sorted(path for path in states.iterdir() if re.fullmatch(r"step_\d+\.pt", path.name))


def load_state(folder: Path, run: Resumable) -> dict[str, Any] | None:
    """Restore a run's last saved state and return its progress; None if it has none yet.

    Raises:
        ValueError: the state is damaged, or of another configuration; or the data have changed, and
            that isn't allowed.
    """
    states = find_states(folder)
    if not states:
        return None
    try:
        content = torch.load(states[-1], map_location="cpu", weights_only=True)
        _compare_data(content.get("data"), run)
        misfit = find_misfit(content["model"], run.model)
        if misfit is not None:
            raise ValueError(f"its weights are of another model: {misfit}")
        _compare_groups(content["optimizer"], run)
        set_state_dict(
            run.prepared_model,
            run.prepared_optimizer.optimizer,
            model_state_dict=content["model"],
            optim_state_dict=content["optimizer"],
            options=_WHOLE,
        )
        if run.config.averaging_decay:
            run.average.load_state_dict(content["average"])
        if run.accelerator.scaler is not None:
            run.accelerator.scaler.load_state_dict(content["scaler"])
        return json.loads(content["progress"])
    except Exception as error:  # the unpickler meets any bytes, and raises almost anything
        reason = str(error).partition("\n")[0]
        raise ValueError(f"can't go on from {states[-1]}: {reason}") from None


def _compare_data(saved: Tensor | None, run: Resumable) -> None:
    """Raise ValueError where the data aren't as they were, or print a line where that is allowed.

    States from before 0.2 don't tell.
    """
    if saved is None or run.listing is None:
        return
    change = describe_change(unpack_listing(saved), run.listing)
    if change and not run.allow_changed_data:
        raise ValueError(
            f"the data have changed: {change}; --allow-changed-data goes on with them as they are"
        )
    if change and run.accelerator.is_main_process:
        print(f"halonet: going on with changed data: {change}", file=sys.stderr)


def _compare_groups(saved: dict[str, Any], run: Resumable) -> None:
    """Compare the parameter groups of a saved optimizer with the run's.

    Prints a line where weight decay changes from here on. A parameter of Muon's fallback (AdamW)
    has another state than one of Muon itself, so that a change of these is refused.

    Raises:
        ValueError: the fallback has other parameters.
    """
    optimizer = run.prepared_optimizer.optimizer
    ours: Any = get_optimizer_state_dict(run.prepared_model, optimizer)
    before, now = (
        {
            name: (bool(group.get("use_fallback")), group.get("weight_decay", 0) != 0)
            for group in one["param_groups"]
            for name in group["params"]
        }
        for one in (saved, ours)
    )
    changed = [name for name in now if name in before and before[name] != now[name]]
    moved = [name for name in changed if before[name][0] != now[name][0]]
    if moved:
        raise ValueError(
            f"{type(optimizer).__name__} updates {moved[0]} and {len(moved) - 1} more by another "
            "rule than when it was saved, by an earlier version; start a new run"
        )
    if changed and run.accelerator.is_main_process:
        switch = "on" if now[changed[0]][1] else "off"
        print(
            f"halonet: weight decay of {len(changed)} parameters is {switch} from here on, unlike "
            f"in the version that saved the run: {changed[0]}, ...",
            file=sys.stderr,
        )


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def find_run(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it lies in one.

    A folder of the Hub has a config.json too, of another kind.
    """
    in_run = checkpoint.name != HUB_NAME and (checkpoint.parent / CONFIG_NAME).is_file()
    return checkpoint.parent if in_run else None
