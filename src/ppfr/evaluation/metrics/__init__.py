"""Arithmetic on scores, embeddings and images: ROC, verification, identification, linkability, similarity."""
