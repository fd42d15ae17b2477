"""Which batch size, at which rate, for the same number of samples: what is good, and what is cheap?

Optuna weighs the loss against the cost: dollars, or seconds of workers. The report shows what is not beaten in both.
"""

from shoal.tuning import TPE, Sweep, choice, loguniform

sweep = Sweep(
    job="../jobs/gpt.py",
    overrides=("budget.samples=9600", "evaluation.every=none", "checkpoints.export=false"),
    space={"batch.size": choice(8, 16, 32, 64, 128), "optimizer.lr": loguniform(1e-3, 1.6e-2)},
    search=TPE(seed=0, startup=5),
    objectives=("val/loss", "cost"),
    trials=12,
)
