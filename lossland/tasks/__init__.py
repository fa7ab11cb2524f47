"""Data sets: the task, and how it is loaded by name."""

from lossland.devices import pick_device
from lossland.sources import TASKS
from lossland.splits import Split
from lossland.tasks.loading import NORMALISATIONS, RESIDENT_BYTES, load_task
from lossland.tasks.task import AUGMENTATIONS, SPLITS, Task

__all__ = ["AUGMENTATIONS", "NORMALISATIONS", "RESIDENT_BYTES", "SPLITS", "TASKS", "Split", "Task", "load_task",
           "pick_device"]
