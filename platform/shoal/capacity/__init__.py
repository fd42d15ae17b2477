"""What a cluster can give: what fits where, how many workers to ask for, who gives way to whom. Imports no Ray."""
