"""Solvers of inverse problems: from a forward operator, a face prior and observations to images.

They take tensors and callables and know no threat model.
"""
