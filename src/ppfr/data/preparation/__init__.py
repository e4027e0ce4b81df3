"""Aligned data sets from photographs."""
