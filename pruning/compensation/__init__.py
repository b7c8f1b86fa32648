"""How the survivors are adjusted after a removal."""
