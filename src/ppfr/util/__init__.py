"""Files, errors, progress and other tools that know nothing of faces."""
