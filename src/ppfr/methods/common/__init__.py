"""What methods share: the abstraction, payloads, stages, client graphs and files."""
