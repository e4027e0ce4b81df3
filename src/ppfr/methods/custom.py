"""A method made of one function: for a client that someone wants to have audited without a class of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ppfr.methods.common.audit_hooks import Hypothesis
from ppfr.methods.common.graph import NoGraph
from ppfr.methods.common.info import BackboneSpec, MethodInfo
from ppfr.methods.common.method import Method
from ppfr.methods.common.options import MethodOptions
from ppfr.methods.common.payload import PayloadSchema, TensorSpec
from ppfr.methods.common.stage import Stage
from ppfr.util.errors import MethodError

Protect = Callable[[Tensor, torch.Generator], Tensor | Mapping[str, Tensor]]
Embed = Callable[[Mapping[str, Tensor]], Tensor]
Client = Callable[[Tensor], Tensor | Mapping[str, Tensor]]

_PROBES = 4


class CustomMethod(Method):
    """A client that is a function, and a server that is another one or none; see `custom_method`."""

    def __init__(
        self,
        info: MethodInfo,
        protect: Protect,
        embed: Embed | None,
        clients: Mapping[str, Client] | None,
        weak: Client | None,
        input_size: tuple[int, int],
    ) -> None:
        super().__init__(MethodOptions(), BackboneSpec("mobilefacenet"), torch.Generator())
        self.info = info
        self.input_size = input_size
        self.client = self.server = nn.Identity()
        self._client, self._server, self._weak = protect, embed, weak
        self._schema, draws = self._probe()
        self._clients = clients if clients is not None else {} if draws else None
        self._embedding_size = self._probe_server()

    @property
    def schema(self) -> PayloadSchema:
        return self._schema

    @property
    def embedding_size(self) -> int:
        if self._embedding_size is None:
            raise MethodError(f"{self.info.name} has no server; give one as `embed` to measure accuracy and templates")
        return self._embedding_size

    def _protect(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return _named(self._client(images, generator))

    def protect_graph(self) -> NoGraph:
        return NoGraph("it is made of functions in Python")

    def _embed(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if self._server is None:
            raise MethodError(f"{self.info.name} has no server; give one as `embed` to measure accuracy and templates")
        return self._server(tensors)

    def hypotheses(self) -> list[Hypothesis]:
        if self._clients is None:
            return super().hypotheses()
        return [Hypothesis(name, partial(_call, client)) for name, client in self._clients.items()]

    def weakened(self) -> Hypothesis | None:
        weak = self._weak
        return None if weak is None else Hypothesis("the weakened client", partial(_call, weak))

    def stages(self) -> list[Stage]:
        return []

    def _probe(self) -> tuple[PayloadSchema, bool]:
        """The payload's schema and whether the client draws at random, from what it makes of noise."""
        noise = torch.rand(_PROBES, 3, *self.input_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            first, second = (self._protect(noise, torch.Generator().manual_seed(seed)) for seed in (1, 2))
        specs = {}
        for name, tensor in first.items():
            if tensor.ndim < 2 or len(tensor) != _PROBES:
                raise MethodError(
                    f"{self.info.name}: the client made {name!r} {tuple(tensor.shape)} of {_PROBES} images; expected "
                    f"({_PROBES}, ...), one row for each image"
                )
            specs[name] = TensorSpec(tuple(tensor.shape[1:]), "made by a function", tensor.dtype)
        draws = any(not torch.equal(first[name], second[name]) for name in first)
        return PayloadSchema(self.info.name, specs), draws

    def _probe_server(self) -> int | None:
        if self._server is None:
            return None
        blank = torch.zeros(2, 3, *self.input_size)
        with torch.no_grad():
            return int(self._server(self._protect(blank, torch.Generator().manual_seed(0))).shape[1])


def custom_method(
    name: str,
    protect: Protect,
    *,
    embed: Embed | None = None,
    clients: Mapping[str, Client] | None = None,
    weakened: Client | None = None,
    secrets: Sequence[str] = (),
    input_size: tuple[int, int] = (112, 112),
    title: str = "",
    paper: str = "a client of your own",
) -> Method:
    """Make a method of a function, to audit it.

    `protect(images, generator)` turns images (B,3,H,W) RGB in [-1,1] into what leaves the client: a tensor, or tensors
    by name, with one row for each image; random draws come from `generator`. `embed(tensors)` is the server, if there
    is one: (B,D). `clients` are all clients that someone who knows the deployment would have to try, by name, each
    without random draws (see `Method.hypotheses`); a function without random draws needs none, one with draws has none
    unless they are given. `weakened` is the client without its protection, the control of attacks; by
    default the clear image is written into tensors of the payload's shapes. `secrets` names what a deployment keeps
    secret. Raises MethodError for a function that does not give one row for each image.
    """
    info = MethodInfo(name=name, title=title or name, paper=paper, secrets=tuple(secrets))
    return CustomMethod(info, protect, embed, clients, weakened, input_size).eval()


def _named(made: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"payload": made} if isinstance(made, Tensor) else dict(made)


def _call(client: Client, images: Tensor) -> dict[str, Tensor]:
    return _named(client(images))


__all__ = ["Client", "CustomMethod", "Embed", "Protect", "custom_method"]
