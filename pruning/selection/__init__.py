"""Which units stay: the best, a threshold, a search, a forecast; and which weights return."""
