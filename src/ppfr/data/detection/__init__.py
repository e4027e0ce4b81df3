"""Face detectors, and aligned crops from landmarks."""
