"""Paper tables against run records, on a terminal."""
