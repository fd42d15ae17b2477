"""Which schedule, peak rate and batch size, for the budget of `jobs/gpt.py`? About three minutes on two cores.

The first trial is that job as it is: what the others have to beat. Bad ones end after a sixth of the budget.
"""

import shoal
from shoal.tuning import ASHA, Sweep, choice, family, loguniform, one_of, uniform

sweep = Sweep(
    job="../jobs/gpt.py",
    # The same number of samples for all batch sizes, as many as the job reads; evaluations often enough to stop early.
    overrides=("budget.samples=9600", "evaluation.every=25", "evaluation.samples=256", "checkpoints.export=false"),
    space={
        "optimizer.lr": loguniform(1e-3, 1.6e-2),
        "batch.size": choice(16, 32),
        "schedule": one_of(
            family(shoal.Cosine, warmup=uniform(0.02, 0.2), final=choice(0.0, 0.05)),
            family(shoal.Rex, warmup=uniform(0.02, 0.2), final=0.0),
            family(shoal.WarmupStableDecay, warmup=uniform(0.02, 0.1), decay=uniform(0.2, 0.5), final=0.0),
        ),
    },
    first=(
        {
            "optimizer.lr": 4e-3,
            "batch.size": 32,
            "schedule": "Cosine",
            "schedule.warmup": 0.1,
            "schedule.final": 0.05,
        },
    ),
    stop_early=ASHA(grace=1600, reduction=3),
    trials=8,
)
