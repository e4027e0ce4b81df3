"""Keyed transforms of templates."""
