"""Export of a trained method into a client folder and a server folder."""
