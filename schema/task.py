"""The recipe's `task:`: what the model is trained to do."""

from schema.choice import Choice


class TaskConfig(Choice):
    """Losses and metrics; options as in tasks/. Without it, the task of the data set."""

    registry = ("tasks", "TASKS")
