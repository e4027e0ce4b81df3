"""The audit: every attack on one method, each proven on a control, and the card with the findings."""
