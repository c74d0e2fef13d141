"""`Task`: the base class of pretext and downstream tasks."""

from ssl_toolkit.step import StepContext, StepOutput
from ssl_toolkit.task.base import Task
from ssl_toolkit.task.photographs import PhotographAccuracy
from ssl_toolkit.task.standalone import Trait

__all__ = ["PhotographAccuracy", "StepContext", "StepOutput", "Task", "Trait"]
