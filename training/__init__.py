"""Trainings: their data, steps, checkpoints and costs."""
