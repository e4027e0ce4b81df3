"""ppfr: privacy-preserving face recognition. Train, attack and deploy recognisers that never see a face.

import ppfr
method = ppfr.load("runs/partialface")
payload = method.protect(images)          # on the client: images (B,3,112,112) in [-1,1]
embedding = method.embed(payload)         # on the server
"""

from typing import TYPE_CHECKING, Any

from ppfr.methods import Method, MethodInfo, Payload, create, method_names, register
from ppfr.methods.common.files import load_method as load
from ppfr.methods.common.files import save_method as save
from ppfr.methods.custom import custom_method
from ppfr.networks import load_checkpoint, load_recogniser
from ppfr.util.errors import (
    AttackError,
    CheckpointError,
    DataError,
    MethodError,
    PayloadError,
    PpfrError,
    RecipeError,
    ShapeError,
)

if TYPE_CHECKING:
    from ppfr.serving.client import AsyncClient, Client

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AttackError",
    "CheckpointError",
    "Client",
    "DataError",
    "Method",
    "MethodError",
    "MethodInfo",
    "Payload",
    "PayloadError",
    "PpfrError",
    "RecipeError",
    "ShapeError",
    "__version__",
    "create",
    "custom_method",
    "load",
    "load_checkpoint",
    "load_recogniser",
    "method_names",
    "register",
    "save",
]


def __getattr__(name: str) -> Any:
    # what talks HTTP is loaded when it is asked for
    if name in ("Client", "AsyncClient"):
        from ppfr.serving import client

        return getattr(client, name)
    raise AttributeError(f"module 'ppfr' has no attribute {name!r}")
