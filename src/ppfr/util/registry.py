"""Classes by name: those of a package of ours, and those that other distributions publish as entry points."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from ppfr.util.errors import PpfrError

_Class = TypeVar("_Class")


class Registry(Generic[_Class]):
    """Classes of one kind, such as methods or attacks, each under a name of its own.

    Classes register themselves when their module is imported. The first look-up imports every module of `package`,
    sub-packages included, and loads the entry points of the group `package`, so that a class in another distribution is
    found by name like ours. `kind` names the thing in messages and `error` is what is raised.
    """

    def __init__(self, kind: str, package: str, error: type[PpfrError]) -> None:
        self.kind, self.package, self.error = kind, package, error
        self._classes: dict[str, _Class] = {}
        self._complete = False

    def register(self, name: str, cls: _Class) -> None:
        """Make a class known by `name`; raises `error` when another class has that name already."""
        known = self._classes.get(name)
        if known is not None and _origin(known) != _origin(cls):
            raise self.error(f"{self.kind} name {name!r} is taken by {_origin(known)}; choose another")
        self._classes[name] = cls

    def names(self) -> list[str]:
        """All names, sorted. Raises `error` for an entry point that cannot be loaded."""
        self._discover()
        return sorted(self._classes)

    def find(self, name: str) -> _Class:
        """The class registered under `name`; raises `error` that lists the known names."""
        if name not in self._classes:
            self._discover()
        if name not in self._classes:
            raise self.error(f"no {self.kind} {name!r}; known: {', '.join(sorted(self._classes))}")
        return self._classes[name]

    def _discover(self) -> None:
        if self._complete:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.walk_packages(package.__path__, f"{self.package}."):
            importlib.import_module(module.name)
        for point in entry_points(group=self.package):
            try:
                point.load()
            except Exception as error:
                origin = point.dist.name if point.dist is not None else "an unknown distribution"
                raise self.error(
                    f"{self.kind} {point.name!r} of {origin} ({point.value}) cannot be loaded: "
                    f"{type(error).__name__}: {error}; update or uninstall {origin}"
                ) from error
        self._complete = True


def _origin(cls: object) -> str:
    return f"{getattr(cls, '__module__', '?')}.{getattr(cls, '__qualname__', '?')}"


__all__ = ["Registry"]
