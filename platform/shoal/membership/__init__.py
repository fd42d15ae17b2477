"""Views, leases, phases, and what to do about a loss: pure decisions, each with its reason. No Ray, torch or clock."""
