"""The recipe's `task:`: what the model is trained to do."""

from prunezoo.schema.choice import Choice


class TaskConfig(Choice):
    """Losses and metrics; options as in tasks/. Without it, the task of the data set."""

    registry = ("prunezoo.tasks", "TASKS")
