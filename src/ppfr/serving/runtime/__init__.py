"""Running the two halves of a deployment."""
