"""Applying a plan: mask, shrink, and the check that they agree."""
