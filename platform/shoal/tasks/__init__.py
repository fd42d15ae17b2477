"""What a model must look like to be trained, and the tasks that come with Shoal. Imports no torch."""

from shoal.tasks.base import Batch, Task
from shoal.tasks.hugging_face import HuggingFaceLM
from shoal.tasks.image_classifier import ImageClassifier
from shoal.tasks.language_model import LanguageModel

__all__ = ["Batch", "HuggingFaceLM", "ImageClassifier", "LanguageModel", "Task"]
