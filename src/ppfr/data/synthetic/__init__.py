"""Drawn faces with identities, and simulated sensors."""
