"""Attacks that recover images, one file each."""
