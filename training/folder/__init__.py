"""The folder of a run: taken by one job, its log, its checkpoints, its environment."""
