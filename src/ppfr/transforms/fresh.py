"""Generators seeded with entropy of the operating system."""

from __future__ import annotations

import os

import torch

# a state of PyTorch's CPU generator begins: the seed, two 32-bit numbers (how many words are left, and 1 for "seeded"),
# which word is next; then come the words of the Mersenne Twister, 32 bits in 64 each
_HEAD, _WORDS = 3, 624
_ALL_USED = [0, 1 | 1 << 32, 0]


def fresh_generator(device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose state is random bytes of the operating system, for draws that protect privacy.

    On a CPU `torch.Generator.seed` is not enough: only 32 bits of a seed count, so that an attacker who sees the draws
    can try them all. Here all 19,937 bits of the state are random; on a GPU (Philox) the 64 bits that there are. 624
    whole words determine the rest of the sequence, so a generator is for one image or payload, not for many.
    """
    generator = torch.Generator(device)
    if generator.device.type != "cpu":
        return generator.manual_seed(int.from_bytes(os.urandom(8), "little", signed=True))
    state = generator.manual_seed(0).get_state()
    words = state.view(torch.int64)
    random = torch.frombuffer(bytearray(os.urandom(4 * _WORDS)), dtype=torch.int32)
    words[:_HEAD] = torch.tensor(_ALL_USED)
    words[_HEAD : _HEAD + _WORDS] = random.long() & 0xFFFFFFFF
    return generator.set_state(state)


__all__ = ["fresh_generator"]
