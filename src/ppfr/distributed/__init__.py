"""Processes of one run: their group, and batches that are the same for any number of them."""
