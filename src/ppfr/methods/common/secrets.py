"""The client's secrets, which are stored apart from the weights and never reach a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ppfr.methods.common.info import MethodInfo
from ppfr.util.errors import MethodError


class SecretHolder:
    """The part of a method that holds its client's secrets; the defaults are those of a client without any."""

    info: MethodInfo

    def secrets(self) -> dict[str, Tensor]:
        """The client's secrets by name, as named in `info.secrets`; stored apart from the weights."""
        return {}

    def set_secrets(self, secrets: Mapping[str, Tensor]) -> None:
        """Take the secrets that `secrets()` gave; raises MethodError when they do not fit."""
        if secrets:
            raise MethodError(f"{self.info.name} has no secrets; got {sorted(secrets)}")

    def drop_secrets(self) -> None:
        """Forget the client's secrets: what remains can embed but not protect."""


def require_secrets(method: SecretHolder, secrets: Sequence[Tensor | None]) -> None:
    """Raise MethodError when a method that was loaded without its secrets is asked to protect."""
    if any(secret is None for secret in secrets):
        raise MethodError(
            f"{method.info.name}: the client's secrets ({', '.join(method.info.secrets)}) are absent, so it can embed "
            "but not protect; put the run's secrets.safetensors beside its model.safetensors"
        )


__all__ = ["SecretHolder", "require_secrets"]
