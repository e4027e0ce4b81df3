"""The cost of a method: parameters, multiply-adds and time on each side, and bytes between them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ppfr.methods import Method
from ppfr.util.errors import ShapeError

REPEATS = 20
WARMUP = 3
# a client that optimises for minutes is not timed twenty times over
MOST_SECONDS = 20.0


@dataclass(frozen=True)
class QueryCost:
    """The cost of one query, an image of the method's input size.

    `*_parameters` are learned numbers (a fixed transform has none), `*_macs` multiply-adds as
    `multiply_adds` counts them, `*_ms` median milliseconds of `protect` and of `embed` at batch 1 on
    `device` with `threads` CPU threads. `payload_bytes_raw` are the tensors as they are,
    `payload_bytes_sent` the mean size of a message (safetensors, deflated) over the images measured: it
    depends on what they show, and making the message is not part of `client_ms`.
    """

    client_parameters: int
    server_parameters: int
    client_macs: int
    server_macs: int
    client_ms: float
    server_ms: float
    payload_bytes_raw: int
    payload_bytes_sent: int
    device: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        client = f"client {self.client_parameters:,} parameters, {self.client_macs / 1e6:.1f} M multiply-adds"
        server = f"server {self.server_parameters:,} parameters, {self.server_macs / 1e6:.1f} M multiply-adds"
        payload = f"payload {self.payload_bytes_raw:,} bytes raw, {self.payload_bytes_sent:,} sent"
        return f"{client}, {self.client_ms:.2f} ms; {server}, {self.server_ms:.2f} ms; {payload}"


def measure_cost(
    method: Method,
    images: Tensor,
    generator: torch.Generator,
    *,
    repeats: int = REPEATS,
    warmup: int = WARMUP,
) -> QueryCost:
    """Measure a method on images (B, 3, H, W) in [-1, 1], on the device they share with it.

    Time and multiply-adds are those of the first image, bytes the mean over all. Slow calls are timed less often, see
    `median_latency`. Random draws come from `generator`. Raises ShapeError for no image, and what `Method.protect`
    raises.
    """
    if not len(images):
        raise ShapeError(f"images have shape {tuple(images.shape)}; expected at least one image to measure with")
    first = images[:1]
    with evaluating(method), torch.inference_mode():
        sent = method.protect(images, generator)
        payload = sent.select([0])
        return QueryCost(
            client_parameters=parameter_count(method.client),
            server_parameters=parameter_count(method.server),
            client_macs=multiply_adds(method.protect, first, generator),
            server_macs=multiply_adds(method.embed, payload),
            client_ms=median_latency(
                lambda: method.protect(first, generator), repeats=repeats, warmup=warmup, device=images.device
            ),
            server_ms=median_latency(
                lambda: method.embed(payload), repeats=repeats, warmup=warmup, device=images.device
            ),
            payload_bytes_raw=payload.nbytes,
            payload_bytes_sent=sent.sent_nbytes,
            device=str(images.device),
            threads=torch.get_num_threads(),
        )


def parameter_count(module: nn.Module) -> int:
    """How many learned numbers a module holds; buffers, such as running means, do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def multiply_adds(function: Callable[..., Any], *inputs: Any) -> int:
    """Multiply-adds of one call `function(*inputs)`, a module or any callable, counted as it runs.

    Counted: convolutions, matrix products (so linear layers and einsum too) and attention by PyTorch's
    `FlopCounterMode`, two of whose operations are one multiply-add, and elementwise products, each as one;
    so a fixed transform such as the block DCT counts with what it really computes, zeros of a dense matrix
    included. Not counted: additions alone, normalisation layers, activations, pooling, and movement of
    data.
    """
    with FlopCounterMode(display=False, custom_mapping=dict(_ELEMENTWISE)) as counter:
        function(*inputs)
    return int(counter.get_total_flops()) // 2


def _two_per_element(*_: Any, out_shape: torch.Size, **__: Any) -> int:
    return 2 * out_shape.numel()


_ELEMENTWISE: dict[Any, Any] = dict.fromkeys(
    (torch.ops.aten.mul, torch.ops.aten.mul_, torch.ops.aten.addcmul, torch.ops.aten.addcmul_),
    _two_per_element,
)


def median_latency(
    function: Callable[[], Any],
    *,
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    device: torch.device | str = "cpu",
    most_seconds: float = MOST_SECONDS,
) -> float:
    """Median wall-clock milliseconds of `function()` over `repeats` calls after `warmup` calls not counted.

    No call begins once `most_seconds` have gone by; if that leaves none to count, the last warm-up call counts: one so
    long has nothing to warm up. On a CUDA `device` each call is timed until the device has finished. Raises ShapeError
    for repeats below 1.
    """
    if repeats < 1 or warmup < 0:
        raise ShapeError(f"repeats {repeats}, warmup {warmup}; expected at least 1 and at least 0")
    finish = _synchroniser(torch.device(device))
    times: list[float] = []
    while len(times) < warmup + repeats and sum(times) <= most_seconds:
        finish()
        start = time.perf_counter()
        function()
        finish()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[warmup:] or times[-1:])


def _synchroniser(device: torch.device) -> Callable[[], None]:
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for a while; then each part is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
