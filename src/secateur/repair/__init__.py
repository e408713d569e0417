"""Repair: make up for what was removed."""
