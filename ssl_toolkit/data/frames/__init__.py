"""`FrameData`: sequences of frames, such as short videos, for tasks that read them in order.

    walk/first/frame_0001.jpg ...     a folder of frames is a sequence, in the natural order of its file names
    walk/second.npy                   so is a file with a uint8 tensor [frames, height, width, channels]
                                      (.npy, .safetensors, or .pt written by torch.save)

The frames of all sequences are one long source of images, so they are decoded, cached and reported like images.
"""

from ssl_toolkit.data.frames.loader import SequenceBatch, SequenceLoader, SequenceStore
from ssl_toolkit.data.frames.module import FrameData
from ssl_toolkit.data.frames.single import SingleFrames
from ssl_toolkit.data.frames.source import FrameSource, SequenceSource

__all__ = [
    "FrameData",
    "FrameSource",
    "SequenceBatch",
    "SequenceLoader",
    "SequenceSource",
    "SequenceStore",
    "SingleFrames",
]
