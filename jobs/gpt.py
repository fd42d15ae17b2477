"""A byte-level language model on the Python standard library's own source: two workers, no download.

On two cores it takes about a minute and ends near 2.1 bits per byte on files that it has never seen.
"""

import shoal
from shoal.tasks import LanguageModel

job = shoal.Job(
    name="gpt",
    task=LanguageModel(context=128, layers=3, heads=4, width=128),
    data=shoal.Data(train="builtin:stdlib", block=129),
    batch=shoal.Batch(size=32, virtual_shards=8),
    optimizer=shoal.Optimizer(name="adamw", lr=4e-3, clip_norm=1.0),
    schedule=shoal.Cosine(warmup=0.1, final=0.05),
    budget=shoal.Budget(steps=300),
    workers=shoal.Workers(min=1, max=2),
    evaluation=shoal.Evaluation(every=100, samples=1024),
    checkpoints=shoal.Checkpoints(every=100),
)
