"""The one training loop's body of the project: what pretext and downstream tasks have in common."""

from ssl_toolkit.step import StepContext, StepOutput
from ssl_toolkit.task.base import Task, Trait

__all__ = ["StepContext", "StepOutput", "Task", "Trait"]
