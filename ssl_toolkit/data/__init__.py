"""Image data: sources, decoding, caches, splits and loaders."""

from ssl_toolkit.data.decode import BadImage, decode_file
from ssl_toolkit.data.loader import BatchLoader
from ssl_toolkit.data.module import ImageData
from ssl_toolkit.data.sources import FolderSource, LabelKind, Source, SubsetSource
from ssl_toolkit.data.splits import Split, few_labels, split_indices
from ssl_toolkit.data.store import DecodedStore, DecodingStore, Store, to_canvas
from ssl_toolkit.data.torchvision_sets import TorchvisionSource

__all__ = [
    "BadImage",
    "BatchLoader",
    "DecodedStore",
    "DecodingStore",
    "FolderSource",
    "ImageData",
    "LabelKind",
    "Source",
    "Split",
    "Store",
    "SubsetSource",
    "TorchvisionSource",
    "decode_file",
    "few_labels",
    "split_indices",
    "to_canvas",
]
