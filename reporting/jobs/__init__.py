"""Runs that fill a table: launched here, as a Slurm array, or priced."""
