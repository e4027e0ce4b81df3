"""ppfr: privacy-preserving face recognition. Train, attack and deploy recognisers that never see a face.

import ppfr
method = ppfr.load("runs/partialface")
payload = method.protect(images)          # on the client: images (B,3,112,112) in [-1,1]
embedding = method.embed(payload)         # on the server

`ppfr.train`, `ppfr.evaluate`, `ppfr.audit` and `ppfr.compare` do what the commands of these names do.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppfr.api import audit, compare, evaluate, train
    from ppfr.methods import Method, MethodInfo, Payload, create, method_names, register
    from ppfr.methods.common.files import load_method as load
    from ppfr.methods.common.files import save_method as save
    from ppfr.methods.custom import custom_method
    from ppfr.networks import load_checkpoint, load_recogniser
    from ppfr.serving.client import AsyncClient, Client
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
    "audit",
    "compare",
    "create",
    "custom_method",
    "evaluate",
    "load",
    "load_checkpoint",
    "load_recogniser",
    "method_names",
    "register",
    "save",
    "train",
]

# where each name is defined; a module is imported when its name is first used, so that `import ppfr` costs nothing
_PLACES = {
    "api": ("audit", "compare", "evaluate", "train"),
    "methods": ("Method", "MethodInfo", "Payload", "create", "method_names", "register"),
    "methods.custom": ("custom_method",),
    "methods.common.files": ("load_method", "save_method"),
    "networks": ("load_checkpoint", "load_recogniser"),
    "serving.client": ("AsyncClient", "Client"),
    "util.errors": (
        *("AttackError", "CheckpointError", "DataError", "MethodError"),
        *("PayloadError", "PpfrError", "RecipeError", "ShapeError"),
    ),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}
_RENAMED = {"load": "load_method", "save": "save_method"}


def __getattr__(name: str) -> Any:
    original = _RENAMED.get(name, name)
    if name not in __all__ or original not in _MODULES:
        raise AttributeError(f"module 'ppfr' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"ppfr.{_MODULES[original]}"), original)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
