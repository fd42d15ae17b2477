"""Data: order as arithmetic, the Ray Data pipeline, the feed, corpora and their preparation."""
