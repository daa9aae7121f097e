"""halonet recipes."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from halonet.cli.parser import CommandParser, make_table

PURPOSE = "list the recipes for train, or all about one of them"


def recipes_command(words: Sequence[str]) -> None:
    """halonet recipes"""
    parser = make_recipes_parser()
    options = parser.parse_words(words)
    if options.format not in ("table", "json"):
        parser.error(f"--format must be table or json, got {options.format!r}")
    from halonet.training.recipes import RECIPES, find_recipe

    if options.recipe is None:
        fields = ("name", "expected", "data", "reproduces")
        listed = [{name: getattr(one, name) for name in fields} for one in RECIPES.values()]
        if options.format == "json":
            print(json.dumps(listed, indent=2))
            return
        header = ["recipe", *fields[1:]]
        print(make_table(header, [[*recipe.values()] for recipe in listed]))
        print("\nAll about one: halonet recipes RECIPE. Figures are accuracies on held-out images,")
        print("as the paper has them unless a recipe is ours.")
        print("Detection has recipes of its own, see halonet detect train --help.")
        return
    described = describe_recipe(find_recipe(RECIPES, options.recipe))
    if options.format == "json":
        print(json.dumps(described, indent=2))
        return
    changes, ours = described.pop("fields").items(), described.pop("ours")
    print("\n".join(f"{name:11} {value}" for name, value in described.items()))
    for place, value in enumerate(ours):
        print(f"{'' if place else 'ours':11} {value}")
    print("\nFields that differ from the defaults:")
    print(make_table(["field", "value"], [[name, json.dumps(value)] for name, value in changes]))
    print(
        "\nOn several GPUs: torchrun --nproc-per-node 8 -m halonet train ...; where a batch doesn't"
    )
    print("fit into them, --accumulation_steps 8 takes it in eight parts.")


def describe_recipe(recipe: Any) -> dict[str, Any]:
    """All about a `Recipe`, ready for JSON, with its fields that differ from the defaults."""
    from halonet.training.config import TrainingConfig, flatten_fields

    defaults = flatten_fields(dataclasses.asdict(TrainingConfig()))
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
    parser.add_argument("recipe", type=str, nargs="?", help="the one to tell all about")
    parser.add_argument("--format", type=str, default="table", help="table or json")
    return parser
