"""What a recipe may say: schema, source files and faults. It imports nothing else of ours."""
