"""What a model must look like to be trained, and the tasks that come with Shoal."""

from shoal.tasks.base import Batch, Task

__all__ = ["Batch", "Task"]
