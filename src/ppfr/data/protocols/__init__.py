"""Published test protocols: heterogeneous face recognition, IJB, RFW."""
