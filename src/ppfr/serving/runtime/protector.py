"""The client's half of a deployment: images in, payloads out."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ppfr.methods import BackboneSpec, Method, Payload, create
from ppfr.methods.common.files import SECRETS_FILE, read_secrets
from ppfr.serving.contract import CLIENT, CLIENT_FILE, Contract, half_folder
from ppfr.util.errors import CheckpointError


class Protector:
    """The client's half of an exported method: it makes payloads and holds nothing of the server."""

    def __init__(self, folder: Path | str) -> None:
        """Load the client of a deployment; raises CheckpointError for another folder and where secrets are missing.

        `folder` is what `ppfr export` wrote, or the `client/` folder in it.
        """
        folder = half_folder(folder, CLIENT)
        self.contract = Contract.load(folder)
        self._method = bare_client(folder, self.contract)
        if self._method.info.secrets:
            if not (folder / SECRETS_FILE).is_file():
                raise CheckpointError(f"{folder} lacks {SECRETS_FILE}; without its secrets a client cannot protect")
            self._method.set_secrets(read_secrets(folder / SECRETS_FILE))

    @torch.no_grad()
    def protect(self, images: Tensor, generator: torch.Generator | None = None) -> Payload:
        """As `Method.protect`."""
        return self._method.protect(images, generator)

    def to_bytes(self, images: Tensor, generator: torch.Generator | None = None) -> bytes:
        """The message of images (B,3,H,W): their payload in the contract's coding, bound to the contract."""
        return self.protect(images, generator).to_bytes(self.contract.coding, contract=self.contract.id)


def bare_client(folder: Path, contract: Contract) -> Method:
    """The method of a `client/` folder without its secrets; the weights of its server are random."""
    config = contract.config
    method = create(config["method"], BackboneSpec.from_dict(config["backbone"]), **config["options"])
    try:
        method.client.load_state_dict(load_file(folder / CLIENT_FILE))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / CLIENT_FILE} does not fit {config['method']}: {error}") from error
    if method.info.secrets:
        method.drop_secrets()
    return method.eval()
