"""Indexes of templates, and their synchronisation with the gallery."""
