"""Base classes of pretext tasks: views, joint embeddings, teachers, grids of patches."""

from pretext.base.grid import GridTask
from pretext.base.joint_embedding import JointEmbeddingTask
from pretext.base.task import PretextTask
from pretext.base.teacher import TeacherTask

__all__ = ["GridTask", "JointEmbeddingTask", "PretextTask", "TeacherTask"]
