"""Measurements: what a network costs, how fast and how good it is, and how its parts hang together."""
