"""What a model is for: tasks, one file each, and how well a model does them."""

from __future__ import annotations

from evaluators.tasks.classification import ClassificationConfig
from evaluators.tasks.task import UNJUDGED, Meter, Metric, Task, TaskConfig, TaskSection, tasks

__all__ = ["DEFAULT", "UNJUDGED", "UNSIZED", "Meter", "Metric", "Task", "TaskConfig", "TaskSection", "tasks"]

DEFAULT: TaskConfig = ClassificationConfig()
"""The task of a recipe that names none, and that published networks are built for."""
UNSIZED: Task = DEFAULT.bind(0, ())
"""It, where sizes are not known or do not matter."""
