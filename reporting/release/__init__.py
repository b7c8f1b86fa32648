"""Trained models for others: folders with cards, the hub, and their speed as exported."""
