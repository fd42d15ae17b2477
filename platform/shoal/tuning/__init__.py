"""Sweeps: many jobs from one, tried by Ray Tune, and what came of them."""
