"""Attacks that find out whose face it is without a picture, one file each."""
