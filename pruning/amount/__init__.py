"""How much is removed: units and their scores, scopes, budgets, sizes and latency."""
