"""Checks of cluster files, before money is spent on them: `ray up` configurations and KubeRay manifests."""
