"""The recipe: its schema, source files and faults. It imports nothing else of ours."""
