"""Errors that name the thing, its value, what was expected and how to mend it."""

from __future__ import annotations


class PpfrError(Exception):
    """Base of every error that ppfr raises on purpose; its text is meant for the user, not for a debugger."""


class PayloadError(PpfrError, ValueError):
    """A payload does not match the schema of the method that is to embed it."""


class ShapeError(PpfrError, ValueError):
    """A tensor has a shape, dtype or range that the called function does not take."""


class MethodError(PpfrError, ValueError):
    """An unknown method, a refused option, or a method used for what it cannot do."""


class RecipeError(PpfrError, ValueError):
    """A recipe with an unknown key, a wrong type or a value out of range; names the key's path."""


class CheckpointError(PpfrError, ValueError):
    """A weight file that is missing, of an unknown layout, or does not fit the network."""


class DataError(PpfrError, ValueError):
    """A data set, list file or image that cannot be used."""


class AttackError(PpfrError, ValueError):
    """An attack used outside its threat model, or on a target that it does not apply to."""


class GalleryError(PpfrError, ValueError):
    """A gallery, its keys or its index used in a way that would lose, mix up or expose templates."""


class ServiceError(PpfrError):
    """A server that refused a request, or did not answer; `status` is the HTTP status, None without an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
