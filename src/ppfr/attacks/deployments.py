"""A second deployment of a method: the same weights and settings, other secrets or another template key."""

from __future__ import annotations

import copy
from typing import Protocol, runtime_checkable

import torch

from ppfr.methods.common.base import Method
from ppfr.util.errors import AttackError


@runtime_checkable
class Revocable(Protocol):
    """A method whose server keeps templates under a key of its own."""

    def reissued(self, seed: int) -> Method:
        """The same system with another template key."""


def second_deployment(method: Method, seed: int) -> Method:
    """A copy whose secrets are those of a method made anew with other seeds in its secret options.

    The method itself if there are no secrets or all deployments share them. The weights are the same, as in a product
    that is sold to two customers; a method that must be trained for its secrets recognises less in the copy. Where the
    server's templates have a key, that one differs and the client's secrets stay, as after a reissue. Raises
    AttackError when the method has secrets but no secret option that is a seed to draw them from.
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(method, Revocable):
        return method.reissued(_drawn(generator))
    if not method.info.secrets:
        return method
    options = method.options
    seeds = [name for name in sorted(type(options).secret_fields()) if isinstance(getattr(options, name), int)]
    if not seeds:
        raise AttackError(
            f"there is no second deployment: {method.info.name} keeps {', '.join(method.info.secrets)} secret but has "
            "no `secret_option` that is a seed to draw them from"
        )
    fresh = {name: _drawn(generator) for name in seeds}
    secrets = type(method)(options.model_copy(update=fresh), method.backbone_spec, generator).secrets()
    if all(torch.equal(secret.cpu(), secrets[name].cpu()) for name, secret in method.secrets().items()):
        return method
    second = copy.deepcopy(method)
    second.set_secrets(secrets)
    return second


def _drawn(generator: torch.Generator) -> int:
    return int(torch.randint(1, 2**31, (1,), generator=generator))


__all__ = ["Revocable", "second_deployment"]
