"""Imported once by the server from which a pool's processes are forked: what takes seconds to import."""

import torch

import tests.support.view_members  # noqa: F401
from shoal import deepspeed_compat

deepspeed_compat.load(torch.device("cpu"))
