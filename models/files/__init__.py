"""Files of models and tensors: written whole, read without running anything."""
