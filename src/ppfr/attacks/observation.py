"""What reaches an attacker of a deployed method: payloads, stored templates, and those of a second deployment."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppfr.attacks.budget import row_chunks
from ppfr.attacks.threat import Sees
from ppfr.evaluation.cost import evaluating
from ppfr.methods.common.method import Method
from ppfr.methods.common.payload import Payload, PayloadSchema, TensorSpec
from ppfr.util.errors import AttackError, MethodError


def template_schema(target: Method) -> PayloadSchema:
    """Schema of what a server of this method stores of a face: its embedding, as `template`."""
    return PayloadSchema(target.info.name, {"template": TensorSpec((target.embedding_size,), "stored embedding")})


@torch.no_grad()
def stored_templates(target: Method, payload: Payload) -> Payload:
    """Templates that the server stores of payloads it enrols, for attacks that see templates."""
    with evaluating(target):
        parts = [target.embed(payload.select(rows)).float() for rows in row_chunks(len(payload), target.schema)]
    return Payload(template_schema(target), {"template": torch.cat(parts)})


@torch.no_grad()
def observe(target: Method, images: Tensor, sees: Sees, generator: torch.Generator) -> Payload:
    """One payload of each image (B,3,H,W) in [-1,1], or the template that the server stores of it."""

    def seen(rows: range) -> Payload:
        payload = target.protect(images[rows.start : rows.stop], generator)
        # at once: templates are a thousandth of the payloads' size
        return stored_templates(target, payload) if sees is Sees.TEMPLATES else payload

    with evaluating(target):
        return Payload.concatenate(seen(rows) for rows in row_chunks(len(images), target.schema))


@dataclass(frozen=True)
class Deployments:
    """Two deployments of one method, with which the same people enrol; see `second_deployment`."""

    first: Method
    second: Method

    @property
    def alike(self) -> bool:
        """Whether both share all secrets and keys."""
        return self.first is self.second

    def enrol(self, images: Tensor, generator: torch.Generator, *, second: bool) -> Tensor:
        """Templates (B,D) that one of the two stores of images (B,3,H,W) in [-1,1].

        Raises MethodError for a method without a server.
        """
        return observe(self.second if second else self.first, images, Sees.TEMPLATES, generator)["template"]


def second_deployment(method: Method, seed: int) -> Method:
    """`method.redeployed(seed)`; raises AttackError for a method that cannot draw other secrets."""
    try:
        return method.redeployed(seed)
    except MethodError as error:
        raise AttackError(str(error)) from error


__all__ = ["Deployments", "observe", "second_deployment", "stored_templates", "template_schema"]
