"""Tracing: which units of a model live and die together."""
