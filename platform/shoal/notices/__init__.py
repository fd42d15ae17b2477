"""Notices that a cloud takes a node back: how each provider says it, who listens on a node, what becomes of it."""
