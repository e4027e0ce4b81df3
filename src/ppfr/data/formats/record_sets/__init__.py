"""TFRecord as TFace and RecordIO as InsightFace store faces, with the index files beside them."""
