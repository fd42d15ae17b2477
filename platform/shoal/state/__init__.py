"""How training state moves: layout, durable checkpoints, export. Imports torch, never Ray."""
