"""Learning-rate schedules as pure functions of progress, and optimizers. Importing this imports no torch."""
