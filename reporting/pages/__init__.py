"""Reports, figures, the zoo and the W&B workspace."""
