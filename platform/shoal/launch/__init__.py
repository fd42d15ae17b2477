"""Bringing a run to life: connect to Ray, resolve the data, start the coordinator, watch it to its end."""
