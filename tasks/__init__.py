"""Tasks: what losses and metrics make of outputs and targets; a line each."""

from prunezoo.tasks.classification import Classification
from prunezoo.tasks.detection import Detection
from prunezoo.tasks.language import Language
from prunezoo.tasks.regression import Regression
from prunezoo.tasks.reinforcement import Reinforcement
from prunezoo.tasks.segmentation import Segmentation
from prunezoo.tasks.task import Targets, Task, TaskError

__all__ = ["TASKS", "Targets", "Task", "TaskError"]

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "detection": Detection,
    "regression": Regression,
    "segmentation": Segmentation,
    "language": Language,
    "reinforcement": Reinforcement,
}
