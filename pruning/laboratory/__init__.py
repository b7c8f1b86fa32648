"""Pruning penalties measured on copies while training goes on."""
