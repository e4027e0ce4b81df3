"""The PReLU with a vectorised backward against torch's own."""

from __future__ import annotations

import torch

from ppfr.networks.prelu import PReLU


def test_the_fast_prelu_is_prelu() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 5, 4, 6), (7, 5)):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        flow = torch.randn(shape, generator=generator, dtype=torch.float64)
        results = []
        for module in (torch.nn.PReLU(5), PReLU(5)):
            module = module.double()
            module.weight.data = torch.linspace(-0.5, 1.5, 5, dtype=torch.float64)
            x = values.clone().requires_grad_()
            y = module(x)
            y.backward(flow)
            results.append((y.detach(), x.grad, module.weight.grad))
        for fast, slow in zip(*results, strict=True):
            assert torch.allclose(fast, slow, atol=1e-12)
