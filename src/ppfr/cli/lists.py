"""`ppfr methods` and `ppfr recipes`: what there is."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from ppfr.cli.app import app, out
from ppfr.methods import method_class, method_names
from ppfr.training.recipe import PROFILES, load_recipe, recipe_names


@app.command("methods")
def methods_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """List the methods, with their papers, secrets and options."""
    infos = [method_class(name).info for name in method_names()]
    if as_json:
        print(json.dumps([{**info.__dict__, "secrets": list(info.secrets)} for info in infos], indent=2))
        return
    for info in infos:
        out.print(f"[bold]{info.name}[/bold]  {info.title}{'' if info.protects else '  (protects nothing: an anchor)'}")
        out.print(f"    {info.paper}", highlight=False)
        if info.secrets:
            out.print(f"    client secrets: {', '.join(info.secrets)}")
        for name, option in method_class(info.name).Options.model_fields.items():
            out.print(
                f"    options.{name} = {option.default!r}: {option.description}",
                highlight=False,
                markup=False,
            )


@app.command("recipes")
def recipes_command(
    name: Annotated[str | None, typer.Argument(help="Show one recipe in full.")] = None,
    profile: Annotated[str, typer.Option(help=f"Recipe profile: {', '.join(PROFILES)}.")] = "standard",
    taught: Annotated[bool, typer.Option("--taught/--untaught", help="As with a teacher, or without one.")] = True,
) -> None:
    """List the built-in recipes, or print one as YAML to start your own from."""
    if name is not None:
        print(load_recipe(name, profile=profile, taught=taught).to_yaml(), end="")
        return
    table = Table("recipe", "profiles", "what it does")
    for known in recipe_names():
        table.add_row(known, ", ".join(PROFILES), load_recipe(known).summary)
    out.print(table)
