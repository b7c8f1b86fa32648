"""Several processes as one: shares of a batch, order of sums, faults that all learn of."""
