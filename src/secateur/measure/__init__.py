"""Measurements: metrics, cost, latency."""
