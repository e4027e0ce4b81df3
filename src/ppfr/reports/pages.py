"""HTML pages from the package's templates."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ppfr.reports.pictures import png_data_uri
from ppfr.reports.wording import MISSING

# values of the base template that a page need not give
_DEFAULTS = {
    "synthetic_mark": "",
    "shows_faces": False,
    "warnings": (),
    "command": "",
    "versions": {},
    "missing": MISSING,
}


def render(template: str, **values: Any) -> str:
    """A page from a template, with every text escaped; raises UndefinedError for a value that is missing."""
    return _environment().get_template(template).render({**_DEFAULTS, **values})


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ppfr.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = png_data_uri
    return environment
