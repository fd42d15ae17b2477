"""What Prometheus would see: every node's metrics, as Ray exports them."""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass

import ray
from prometheus_client.parser import text_string_to_metric_families

ANSWER_S = 5.0


@dataclass(frozen=True)
class Scraped:
    """Samples of one run: (name, tags besides the run's) -> value."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def get(self, name: str, **tags: str) -> float | None:
        """The value of a sample that has these tags; None: there is none (yet)."""
        found = [v for (n, t), v in self.samples.items() if n == name and t >= set(tags.items())]
        assert len(found) <= 1, f"{name} {tags} is there {len(found)} times"
        return found[0] if found else None

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.samples}


def scrape(run: str) -> Scraped:
    """All samples of Shoal's that carry this run's id, from the living nodes."""
    samples = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        try:
            text = urllib.request.urlopen(url, timeout=ANSWER_S).read().decode()
        except (urllib.error.URLError, TimeoutError):
            continue  # its agent is not up yet, or no longer
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ray_shoal_") and sample.labels.get("run") == run:
                    samples[sample.name, frozenset(sample.labels.items())] = sample.value
    return Scraped(samples)
