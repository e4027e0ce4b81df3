"""Learned estimators: features of payloads, and filters and linear maps that are fitted to training pairs.

They take tensors and callables and know no threat model.
"""
