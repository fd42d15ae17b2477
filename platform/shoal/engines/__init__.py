"""Engines: replicated (torch) and zero (DeepSpeed), behind one small protocol. Import torch, never Ray."""
