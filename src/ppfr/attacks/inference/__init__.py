"""Attacks that infer soft attributes, one file each."""
