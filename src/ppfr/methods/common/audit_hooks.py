"""What an audit may ask of a method: its possible clients, a weakened client, and a second deployment."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.options import MethodOptions
from ppfr.methods.common.secrets import SecretHolder
from ppfr.util.errors import MethodError


@dataclass(frozen=True)
class Hypothesis:
    """A client with every secret and random draw fixed: what an attacker assumes after one guess.

    `apply` maps images (B,3,H,W) in [-1,1] to the payload's tensors; it is deterministic and differentiable. Where the
    payload holds whole numbers it gives the values before rounding.
    """

    name: str
    apply: Callable[[Tensor], dict[str, Tensor]]


class AuditHooks(SecretHolder):
    """The part of a method that attacks and reports use; the defaults hold for a client without random draws."""

    info: MethodInfo
    options: MethodOptions
    backbone_spec: BackboneSpec

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        raise NotImplementedError  # abstract: see Method

    def hypotheses(self) -> list[Hypothesis]:
        """Every client an attacker who knows this deployment must try; more than one where the client draws at random.

        The default holds for a client without draws. A client whose draws are too many to list gives none. Raises
        MethodError when the client's secrets are absent.
        """
        return [Hypothesis("client", lambda images: self._protect(images, torch.Generator(images.device)))]

    def weakened(self) -> Hypothesis | None:
        """This client with what protects taken away, the control of attacks: noise off, draws fixed.

        An attack that fails here is not believed elsewhere. The default None leaves the choice to the audit, which lets
        the client write the clear image into tensors of the payload's shapes.
        """
        return None

    def redeployed(self, seed: int) -> Self:
        """A second deployment: the same weights and settings, other secrets, drawn by `seed`.

        The default makes the method anew with other seeds in its secret options and copies the weights, as in a product
        that is sold to two customers; a method that must be trained for its secrets recognises less in the copy.
        Returns the method itself if it has no secrets or if all deployments share them. Raises MethodError when the
        method has secrets but no secret option that is a seed to draw them from.
        """
        if not self.info.secrets:
            return self
        generator = torch.Generator().manual_seed(seed)
        options = self.options
        seeds = [name for name in sorted(type(options).secret_fields()) if isinstance(getattr(options, name), int)]
        if not seeds:
            raise MethodError(
                f"there is no second deployment: {self.info.name} keeps {', '.join(self.info.secrets)} secret but has "
                "no `secret_option` that is a seed to draw them from"
            )
        fresh = {name: draw_seed(generator) for name in seeds}
        make: Any = type(self)
        secrets = make(options.model_copy(update=fresh), self.backbone_spec, generator).secrets()
        if all(torch.equal(secret.cpu(), secrets[name].cpu()) for name, secret in self.secrets().items()):
            return self
        second = copy.deepcopy(self)
        second.set_secrets(secrets)
        return second

    def remarks(self) -> list[str]:
        """What a reader of this method's figures must know; the options may have a say in it."""
        return [self.info.departures] if self.info.departures else []


def draw_seed(generator: torch.Generator) -> int:
    """A seed for the secrets of another deployment."""
    return int(torch.randint(1, 2**31, (1,), generator=generator))


__all__ = ["AuditHooks", "Hypothesis", "draw_seed"]
