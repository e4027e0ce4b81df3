"""A second deployment of a method: the same weights and settings, other secrets or another template key."""

from __future__ import annotations

from ppfr.methods.common.method import Method
from ppfr.util.errors import AttackError, MethodError


def second_deployment(method: Method, seed: int) -> Method:
    """`method.redeployed(seed)`; raises AttackError for a method that cannot draw other secrets."""
    try:
        return method.redeployed(seed)
    except MethodError as error:
        raise AttackError(str(error)) from error


__all__ = ["second_deployment"]
