"""Enrolled templates: database, encryption, API keys."""
