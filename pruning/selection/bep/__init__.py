"""Bayesian early pruning: saliency over time, Gaussian processes, Algorithm 2."""
