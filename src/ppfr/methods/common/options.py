"""Options of a method: which are secret, and which may change after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ppfr.util.errors import MethodError


class MethodOptions(BaseModel):
    """Settings of one method; unknown names and wrong types are refused, secret fields never reach a server file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def secret_fields(cls) -> set[str]:
        """Names of the options that would give a client's secret away."""
        return {
            name
            for name, declared in cls.model_fields.items()
            if isinstance(declared.json_schema_extra, dict) and declared.json_schema_extra.get("secret")
        }

    @classmethod
    def payload_settings(cls) -> dict[str, tuple[Any, ...]]:
        """Options that may change after training, because they touch the payload and no weight, with values to try.

        The first value is the one that loses least.
        """
        return {
            name: tuple(values)
            for name, declared in cls.model_fields.items()
            if isinstance(declared.json_schema_extra, dict)
            and isinstance(values := declared.json_schema_extra.get("payload"), list)
        }

    @classmethod
    def parse(cls, values: Mapping[str, Any], method: str) -> Self:
        """Validate the options of the method of that name; raises MethodError that reports every problem at once."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'options'}: {problem['msg']} (got {problem['input']!r})"
                for problem in error.errors()
            )
            known = ", ".join(sorted(cls.model_fields)) or "none"
            raise MethodError(f"{method}: {problems}. Options: {known}") from error


def secret_option(default: Any, description: str) -> Any:
    """A pydantic field that is stored with no model and no recipe: it gives a secret away, or is needed only once."""
    return Field(default, description=description, json_schema_extra={"secret": True})


def payload_option(values: Sequence[Any], description: str, **limits: Any) -> Any:
    """A pydantic field that may change after training; `values` are worth comparing, the first is the default."""
    return Field(values[0], description=description, json_schema_extra={"payload": list(values)}, **limits)


__all__ = ["MethodOptions", "payload_option", "secret_option"]
