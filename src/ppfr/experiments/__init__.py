"""Experiments over several methods: trained, measured and audited under one recipe."""
