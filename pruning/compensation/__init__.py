"""Adjustments of the survivors after a removal."""
