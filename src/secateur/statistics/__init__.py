"""Statistics: what is measured on calibration batches."""
