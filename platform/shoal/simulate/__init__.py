"""What nodes that come and go do to a run of any size: a simulator at the grain of events. Pure, seeded."""
