"""Learned estimators: features of payloads, and filters and linear maps fitted to training pairs in closed form.

They take tensors and callables and know no threat model.
"""
