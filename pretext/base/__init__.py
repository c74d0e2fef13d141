"""Base classes of pretext tasks: views, joint embeddings, teachers, queues, patches."""

from pretext.base.grid import GridTask
from pretext.base.joint_embedding import JointEmbeddingTask
from pretext.base.patches import PatchTask
from pretext.base.queue import QueueTask
from pretext.base.task import PretextTask
from pretext.base.teacher import TeacherTask

__all__ = ["GridTask", "JointEmbeddingTask", "PatchTask", "PretextTask", "QueueTask", "TeacherTask"]
