"""Population-based training: four runs of `jobs/gpt.py` train together, and the worst goes on from the best one's
checkpoint with its rate, decay and clipping perturbed."""

from shoal.tuning import Population, Sweep, loguniform, uniform

sweep = Sweep(
    job="../jobs/gpt.py",
    overrides=("evaluation.every=50", "evaluation.samples=256", "checkpoints.every=50", "checkpoints.export=false"),
    space={
        "optimizer.lr": loguniform(5e-4, 2e-2),
        "optimizer.weight_decay": uniform(0.0, 0.3),
        "optimizer.clip_norm": uniform(0.3, 3.0),
    },
    search=Population(every=100, resource="steps"),
    trials=4,
    at_once=4,
    workers=4,
)
