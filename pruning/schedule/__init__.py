"""When a round is due: schedules, curves and triggers."""
