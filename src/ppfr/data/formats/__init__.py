"""Readers and writers of the file formats that face data comes in."""
