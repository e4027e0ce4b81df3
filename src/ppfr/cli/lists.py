"""`ppfr methods` and `ppfr recipes`: what there is."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ppfr.cli.app import app, out
from ppfr.methods import Method, method_class, method_names
from ppfr.recipes.recipe import PROFILES, load_recipe, recipe_names


@app.command("methods")
def methods_command(
    names: Annotated[list[str] | None, typer.Argument(help="Show these in full, with their options.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """List the methods; or show the named ones with paper, departures from it, secrets and options."""
    classes = [method_class(name) for name in names or method_names()]
    if as_json:
        infos = [cls.info for cls in classes]
        print(json.dumps([{**info.__dict__, "secrets": list(info.secrets)} for info in infos], indent=2))
    elif names:
        for cls in classes:
            _show(cls)
    else:
        table = Table("method", "what it does")
        for cls in classes:
            table.add_row(cls.info.name, (cls.__doc__ or cls.info.title).splitlines()[0])
        out.print(table)
        out.print("ppfr methods NAME shows one in full; ppfr recipes lists how they are trained.", highlight=False)


def _show(cls: type[Method]) -> None:
    info = cls.info
    out.print(f"[bold]{info.name}[/bold]  {info.title}{'' if info.protects else '  (unprotected baseline)'}")
    lines = [("paper", info.paper), ("differs", info.departures), ("client secrets", ", ".join(info.secrets))]
    for name, option in cls.Options.model_fields.items():
        lines.append((f"options.{name} = {option.get_default(call_default_factory=True)!r}", option.description or ""))
    for name, text in lines:
        if text:
            out.print(Padding(Text(f"{name}: {text}"), (0, 0, 0, 4)))


@app.command("recipes")
def recipes_command(
    name: Annotated[str | None, typer.Argument(help="Show one recipe in full.")] = None,
    profile: Annotated[str, typer.Option(help=f"Recipe profile: {', '.join(PROFILES)}.")] = "standard",
    taught: Annotated[
        bool, typer.Option("--taught/--untaught", help="The recipe for training with a teacher, or without one.")
    ] = True,
) -> None:
    """List the built-in recipes, or print one as YAML to start your own from."""
    if name is not None:
        print(load_recipe(name, profile=profile, taught=taught).to_yaml(), end="")
        return
    table = Table("recipe", "profiles", "what it does")
    for known in recipe_names():
        table.add_row(known, ", ".join(PROFILES), load_recipe(known).summary)
    out.print(table)
