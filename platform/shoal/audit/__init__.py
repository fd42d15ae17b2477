"""Proofs about a recorded run: that every sample was used exactly once, and that its numbers come out again."""
