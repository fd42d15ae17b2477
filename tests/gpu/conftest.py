"""Tests that need a CUDA device. Where there is none, there is nothing to collect."""

import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
