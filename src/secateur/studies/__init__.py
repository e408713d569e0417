"""Studies: the tables and figures of publications, beside the published numbers."""
