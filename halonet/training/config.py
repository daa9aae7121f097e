"""The configuration of a training run: its fields, and what they may hold."""

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

# What accelerate's LoggerType names, and none; accelerate itself is imported only to train.
LogWith = Literal[
    "none",
    "all",
    "aim",
    "clearml",
    "comet_ml",
    "dvclive",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
]


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a training run, for every task.

    Attributes:
        recipe: the recipe that the run started from.
        model_options: changes to the model, as {"block_size": 4, "halo_size": 1}.
        backend: of the attention, as sdpa; None takes the fastest.
        init: a checkpoint or a run folder to start from; a classifier of other classes starts
            from zero.
        pretrained: true starts from the model's public weights; a path from those in a file, of
            timm's for its models.
        broken_share: largest share of images that can't be read: those to train on are replaced
            by their neighbours, held-out ones aren't scored; more stop the run.
        epochs: passes over the training images.
        batch_size: images of a step, over all processes and accumulated batches.
        accumulation_steps: batches, one after the other, whose gradients make up a step.
        optimizer: a name that timm's create_optimizer_v2 knows, as sgd (Nesterov's), nadamw, muon.
        learning_rate: at its peak.
        schedule: cosine, or steps: divided by 10 at each of `decay_shares`.
        warmup_share: share of the steps in which the learning rate rises linearly.
        warmup_start_share: share of the peak at which it starts to rise.
        final_learning_rate_share: share of the peak at which the cosine ends.
        decay_shares: shares of the steps, rising, at which the schedule of steps decays.
        weight_decay: of the weights.
        decay_everything: apply weight decay to norms, biases and relative tables too.
        averaging_decay: of the averaged weights, which are evaluated and saved; 0 for none.
        clip_norm: largest norm of the gradient; 0 for no limit.
        batch_norm: local, with each process's own statistics; synchronized over the processes, on
            GPUs only; or frozen, with the statistics that it started from.
        evaluate_epochs: epochs between evaluations on the held-out images.
        patience: evaluations in a row without a better score after which the run ends; 0 for none.
        checkpoint_steps: steps between checkpoints within an epoch; 0 for one each epoch.
        mixed_precision: no, bf16 or fp16.
        compile: run the model through torch.compile.
        shard_weights: split weights, gradients and optimizer over the processes (FSDP).
        log_with: the tracker to log with; tensorboard writes into the run folder, all takes every
            one that is installed.
        workers: processes that read images, for each process that trains; 0 reads in that one.
        seed: of weights, order and augmentation.
    """

    recipe: str = "small"
    model_options: dict[str, int | float | str | bool | list] = field(default_factory=dict)
    backend: str | None = None
    init: str | None = None
    pretrained: bool | str = False
    broken_share: float = 0.0
    epochs: int = 30
    batch_size: int = 32
    accumulation_steps: int = 1
    optimizer: str = "nadamw"
    learning_rate: float = 2e-3
    schedule: Literal["cosine", "steps"] = "cosine"
    warmup_share: float = 0.1
    warmup_start_share: float = 0.0
    final_learning_rate_share: float = 0.01
    decay_shares: tuple[float, ...] = ()
    weight_decay: float = 0.05
    decay_everything: bool = False
    averaging_decay: float = 0.99
    clip_norm: float = 1.0
    batch_norm: Literal["local", "synchronized", "frozen"] = "local"
    evaluate_epochs: int = 1
    patience: int = 0
    checkpoint_steps: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    shard_weights: bool = False
    log_with: LogWith = "tensorboard"
    workers: int = 0
    seed: int = 0


Config = TypeVar("Config", bound=RunConfig)

TYPES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list, as [0.5,1.0]",
    dict: 'a mapping, as {"block_size":4}',
}


@dataclass(frozen=True)
class Recipe(Generic[Config]):
    """A configuration to start from, and the result that it reproduces.

    Attributes:
        config: the values; its `recipe` is the recipe's name.
        reproduces: the result.
        expected: the figure that the source of the result states.
        data: what it trains on.
        hardware: what it was run on.
        command: the command that runs it.
        ours: values that decide the result, but that its source doesn't state: we chose them.
    """

    config: Config
    reproduces: str
    expected: str
    data: str
    hardware: str
    command: str
    ours: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The value of --recipe."""
        return self.config.recipe


def find_recipe(recipes: Mapping[str, Recipe[Config]], name: str) -> Recipe[Config]:
    """The recipe called `name`; ValueError for an unknown one, with close matches."""
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise ValueError(
            "recipe must be one of the command's, which `halonet recipes` lists, "
            f"got {name!r}{hint}"
        )
    return recipes[name]


def change_config(config: Config, fields: Mapping[str, Any]) -> dict[str, Any]:
    """All plain values of a configuration with some fields changed, checked as the command line's.

    Raises:
        ValueError: an unknown field, or a value of another type.
    """
    kinds = get_type_hints(type(config))
    for name, value in fields.items():
        if value is None and name in kinds and type(None) not in get_args(kinds[name]):
            raise ValueError(f"{name} must be {describe_type(kinds[name])}, got None")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(config), as_group=False)
    parser.set_defaults(dataclasses.asdict(config))
    try:
        return parser.parse_object(dict(fields)).as_dict()
    except ArgumentError as error:
        raise ValueError(describe_misfit(parser, str(error))) from None


def describe_misfit(parser: ArgumentParser, message: str) -> str:
    """jsonargparse's complaint about a value: its name, what was expected and what came."""
    text = " ".join(message.split())
    match = re.fullmatch(r'Parser key "([\w.]+)": (?:Expected|Does not).* value: (.*)', text)
    actions = {action.dest: action for action in parser._actions}
    kind = getattr(actions.get(match[1]), "_typehint", None) if match else None
    if match is None or kind is None:
        return text
    return f"{match[1]} must be {describe_type(kind)}, got {match[2]}"


def describe_type(kind: Any) -> str:
    """What a value must be, in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(describe_type(one) for one in get_args(kind) if one is not type(None))
    return TYPES.get(get_origin(kind) or kind, str(kind))


def modernize_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config.json of any version, by their names of today."""
    values = dict(fields)
    if "tensorboard" in values:  # a bool, before 0.2
        values["log_with"] = "tensorboard" if values.pop("tensorboard") else "none"
    return values


def flatten_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's plain values by the names of the command line's options.

    Nested fields get dotted names, as augmentation.crop_share.
    """
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            inner = flatten_fields(value)
            flat |= {f"{name}.{key}": nested for key, nested in inner.items()}
        else:
            flat[name] = value
    return flat


def check_run_config(config: RunConfig) -> None:
    """Raise ValueError for a value that no run can have; the message names the field."""
    if config.init is not None and config.pretrained is not False:
        raise ValueError(
            f"init and pretrained are two weights to start from, got {config.init} and "
            f"{config.pretrained}"
        )
    require_positive(
        config,
        *("epochs", "batch_size", "accumulation_steps", "learning_rate", "evaluate_epochs"),
    )
    require_not_negative(
        config, "weight_decay", "clip_norm", "patience", "checkpoint_steps", "workers"
    )
    require_shares(
        config,
        *("broken_share", "warmup_share", "warmup_start_share", "final_learning_rate_share"),
        "averaging_decay",
    )
    require_choices(config)
    if config.batch_size % config.accumulation_steps:
        raise ValueError(
            f"batch_size must be a multiple of accumulation_steps {config.accumulation_steps}, "
            f"got {config.batch_size}"
        )
    shares = (config.warmup_share, *config.decay_shares, 1.0)
    if any(one >= other for one, other in itertools.pairwise(shares)):
        raise ValueError(
            "decay_shares must rise between warmup_share and 1, got "
            f"{list(config.decay_shares)} with a warmup_share of {config.warmup_share}"
        )
    if (config.schedule == "steps") != bool(config.decay_shares):
        raise ValueError(
            "decay_shares are for schedule steps, and it needs them; got "
            f"{list(config.decay_shares)} with {config.schedule}"
        )


def require_positive(config: object, *names: str) -> None:
    """Raise ValueError unless each of the fields is positive, nan excluded."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")


def require_not_negative(config: object, *names: str) -> None:
    """Raise ValueError unless each of the fields is 0 or more."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be 0 or more, got {getattr(config, name)}")


def require_shares(config: object, *names: str) -> None:
    """Raise ValueError unless each of the fields is from 0 to below 1."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be from 0 to below 1, got {getattr(config, name)}")


def require_choices(config: object) -> None:
    """Raise ValueError unless each field that is annotated as a Literal holds one of its values."""
    for name, annotation in get_type_hints(type(config)).items():
        choices, value = get_args(annotation), getattr(config, name)
        if get_origin(annotation) is Literal and value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}")
