"""Modules and size attributes of layers that have lost units."""
