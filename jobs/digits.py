"""Handwritten digits: a small network tells them apart in seconds. Needs scikit-learn: pip install 'shoal[digits]'."""

import shoal
from shoal.tasks import ImageClassifier

job = shoal.Job(
    name="digits",
    task=ImageClassifier(network="cnn", features=32, layers=2),
    data=shoal.Data(train="builtin:digits"),
    batch=shoal.Batch(size=64),
    optimizer=shoal.Optimizer(lr=3e-3, weight_decay=0.05),
    budget=shoal.Budget(epochs=10),
    evaluation=shoal.Evaluation(every=100),
)
