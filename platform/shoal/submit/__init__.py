"""Jobs sent to a cluster by Ray's job API: what goes there, and how to follow, stop and list what is there."""
