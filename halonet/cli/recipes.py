"""halonet recipes: all recipes, or one in full."""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from halonet.cli.parser import CommandParser, make_table

PURPOSE = "list the recipes of both train commands, or show one in full"


def recipes_command(words: Sequence[str]) -> None:
    """Print a list of all recipes, or one with all that is known of it."""
    parser = make_recipes_parser()
    options = parser.parse_words(words)
    from halonet.classification.recipes import RECIPES
    from halonet.detection.recipes import RECIPES as DETECTION_RECIPES
    from halonet.training.config import find_recipe

    recipes: dict[str, Any] = {**RECIPES, **DETECTION_RECIPES}
    if options.recipe is not None:
        described = describe_recipe(find_recipe(recipes, options.recipe))
        print(json.dumps(described, indent=2) if options.format == "json" else _show(described))
    elif options.format == "json":
        fields = ("name", "expected", "data", "reproduces")
        listed = [{name: getattr(one, name) for name in fields} for one in recipes.values()]
        print(json.dumps(listed, indent=2))
    else:
        print(f"{_make_list(RECIPES, 'halonet train')}\n\n")
        print(_make_list(DETECTION_RECIPES, "halonet detect train"))
        print("\nOne in full: halonet recipes RECIPE. Expected are the paper's figures on held-out")
        print("images (for classifiers top-1 accuracy), unless a recipe says that it is ours.")


def _make_list(recipes: Mapping[str, Any], command: str) -> str:
    """Two lines for each recipe: beside the longest names one would be too long."""
    rows = [[recipe.name, recipe.expected] for recipe in recipes.values()]
    header, *lines = make_table([f"{command} --recipe", "expected"], rows).splitlines()
    purposes = [f"  {recipe.reproduces}" for recipe in recipes.values()]
    return "\n".join([header, *itertools.chain(*zip(lines, purposes, strict=True))])


def _show(described: dict[str, Any]) -> str:
    """A recipe in full, as text."""
    texts = {name: value for name, value in described.items() if name not in ("fields", "ours")}
    lines = [f"{name:11} {value}" for name, value in texts.items()]
    lines += [
        f"{'' if place else 'ours':11} {value}" for place, value in enumerate(described["ours"])
    ]
    rows = [[name, json.dumps(value)] for name, value in described["fields"].items()]
    lines += ["", "Fields that differ from the defaults:", make_table(["field", "value"], rows)]
    command = described["command"].partition(" --")[0]
    return "\n".join(
        [
            *lines,
            "",
            f"On several GPUs: torchrun --nproc-per-node 8 -m {command} ...; where a batch doesn't",
            "fit into them, --accumulation-steps 8 takes it in eight parts.",
        ]
    )


def describe_recipe(recipe: Any) -> dict[str, Any]:
    """A `Recipe` as plain values, with those of its fields that differ from the defaults."""
    from halonet.training.config import flatten_fields

    defaults = flatten_fields(dataclasses.asdict(type(recipe.config)()))
    values = flatten_fields(dataclasses.asdict(recipe.config))
    missing = object()
    described = {
        field.name: getattr(recipe, field.name)
        for field in dataclasses.fields(recipe)
        if field.name != "config"
    }
    return {
        "name": recipe.name,
        **described,
        "fields": {
            name: value
            for name, value in values.items()
            if name != "recipe" and value != defaults.get(name, missing)
        },
    }


def make_recipes_parser() -> CommandParser:
    """The options of `halonet recipes`."""
    parser = CommandParser(prog="halonet recipes", description=PURPOSE)
    parser.add_argument("recipe", type=str, nargs="?", help="one to show in full")
    parser.add_format()
    return parser
