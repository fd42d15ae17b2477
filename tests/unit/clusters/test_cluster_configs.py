"""The files in cluster_configs/: valid by Ray's, the clouds' and KubeRay's own words, and as cheap as they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from shoal.clusters.checking import Checked, check
from shoal.environment import RUNS
from shoal.ray_compat import cluster_schema, filled_out, version

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "cluster_configs"
RAY_UP = ("aws", "gcp", "azure", "local")
CLOUDS = ("aws", "gcp", "azure")
KUBERAY = ("raycluster", "rayjob", "redis")
BLANKS = {
    "aws": {"AMI_ID"},
    "gcp": {"PROJECT_ID", "GPU_IMAGE"},
    "azure": {"SUBSCRIPTION_ID"},
    "local": {"HEAD_ADDRESS", "WORKER_ADDRESS", "SSH_USER"},
    "raycluster": {"IMAGE_REGISTRY", "STORAGE_CLASS"},
    "rayjob": {"IMAGE_REGISTRY", "STORAGE_CLASS"},
    "redis": set(),
}


def path_of(name: str) -> Path:
    return CONFIGS / (f"kuberay/{name}.yaml" if name in KUBERAY else f"{name}.yaml")


def text_of(name: str) -> str:
    return path_of(name).read_text()


def config(name: str) -> dict[str, Any]:
    return yaml.safe_load(text_of(name))


@pytest.fixture(scope="module")
def found() -> dict[str, Checked]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {name: check(path_of(name)) for name in (*RAY_UP, *KUBERAY)}


def test_all_files_are_looked_at() -> None:
    assert {p.stem for p in CONFIGS.rglob("*.yaml")} == {*RAY_UP, *KUBERAY}


@pytest.mark.parametrize("name", [*RAY_UP, *KUBERAY])
def test_a_file_is_right_but_for_what_only_its_user_knows(name: str, found: dict[str, Checked]) -> None:
    one = found[name]
    assert one.errors == one.notes == one.skipped == ()
    assert {finding.reason.split()[0] for finding in one.blanks} == BLANKS[name]
    explained = text_of(name).partition("\n\n")[0]
    assert all(word in explained for word in BLANKS[name]), "the first lines say with what to fill it in"


@pytest.mark.parametrize("name", CLOUDS)
def test_the_prices_in_the_first_lines_are_those_of_the_table(name: str, found: dict[str, Checked]) -> None:
    said = {}
    for line in text_of(name).splitlines():
        if matched := re.match(r"#   (\S+) +(\S+) +(on-demand|spot) +(?:\$([\d.]+)|not in the table)", line):
            said[matched[1]] = (matched[2], matched[3], float(matched[4]) if matched[4] else None)
    machines = {n: t["node_config"] for n, t in config(name)["available_node_types"].items()}
    assert set(said) == set(machines)
    for group in found[name].groups:
        machine, market, price = said[group.name]
        assert machine in str(machines[group.name])
        assert (group.market, group.per_hour) == (market, price)
        assert group.machine == (machine if price is not None else None)


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_is_on_demand_and_the_workers_are_spot(name: str, found: dict[str, Checked]) -> None:
    head, *workers = found[name].groups
    assert (head.name, head.low, head.high, head.market) == ("head", 1, 1, "on-demand")
    assert {worker.market for worker in workers} == {"spot"}
    assert all(worker.low == 0 < worker.high for worker in workers), "an idle cluster costs its head alone"
    assert any(worker.gpus for worker in workers)
    assert any(not worker.gpus for worker in workers)
    assert config(name)["idle_timeout_minutes"] <= 10


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_itself_takes_it(name: str) -> None:
    whole = filled_out(config(name))
    assert whole["head_node_type"] in whole["available_node_types"]
    assert whole["cluster_synced_files"] == [], "Ray's defaults are in it"


@pytest.mark.parametrize("name", RAY_UP)
def test_the_tested_set_is_installed(name: str) -> None:
    said = config(name)
    install = shlex.split(said["setup_commands"][0])
    assert install[:2] == ["pip", "install"]
    constraints = install[install.index("-c") + 1]
    mounted = said["file_mounts"]
    assert mounted[constraints] == "constraints.txt"
    source = install[-1].partition("[")[0]
    for needed in ("platform", "pyproject.toml", "README.md", "LICENSE"):  # what building the package reads
        assert mounted[f"{source}/{needed}"] == needed
        assert (ROOT / needed).exists()
    images = [said["docker"]["image"], *re.findall(r"worker_image: (\S+)", text_of(name))]
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    assert pinned[1] == version()
    assert all(image.startswith(f"rayproject/ray:{version()}-py311") for image in images), "constraints.txt is for 3.11"


HEALTH = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


@pytest.mark.parametrize("name", RAY_UP)
def test_a_dead_node_is_noticed_soon(name: str) -> None:
    start = config(name)["head_start_ray_commands"][-1]
    assert dict(re.findall(r"(RAY_health_check_\w+)=(\d+)", start)) == HEALTH
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start
    assert "--dashboard-host=127.0.0.1" in start, "it is reached by `ray dashboard`, through ssh"


@pytest.mark.parametrize("name", CLOUDS)
def test_every_worker_listens_for_the_provider(name: str) -> None:
    assert f"shoal watch-node --provider {name}" in config(name)["worker_start_ray_commands"][-1]


def kuberay_spec(name: str) -> dict[str, Any]:
    value = next(iter(yaml.safe_load_all(text_of(name))))["spec"]
    return value["rayClusterSpec"] if name == "rayjob" else value


def test_both_manifests_have_the_same_cluster() -> None:
    assert kuberay_spec("rayjob") == kuberay_spec("raycluster")


def test_kuberay_has_what_a_run_needs() -> None:
    spec = kuberay_spec("raycluster")
    head = spec["headGroupSpec"]["template"]["spec"]
    assert spec["rayVersion"] == version()
    assert spec["enableInTreeAutoscaling"]
    assert spec["authOptions"]["mode"] == "token"
    said = {e["name"]: e["value"] for e in head["containers"][0]["env"]}
    assert said == HEALTH | {RUNS: head["containers"][0]["volumeMounts"][0]["mountPath"]}, "runs outlive the pod"
    secret = spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    service, stateful = yaml.safe_load_all(text_of("redis"))
    address = f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert spec["gcsFaultToleranceOptions"]["redisAddress"] == address
    assert stateful["spec"]["template"]["spec"]["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"] == secret
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        assert {t["key"] for t in pod["tolerations"]} >= {
            "cloud.google.com/gke-spot",
            "kubernetes.azure.com/scalesetpriority",
        }
        assert pod["terminationGracePeriodSeconds"] <= 30, "less than what the clouds leave a pod"
        shoal, drain, flag, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert (shoal, drain, flag) == ("shoal", "drain-node", "--deadline")
        assert float(seconds) < pod["terminationGracePeriodSeconds"]


def test_head_and_workers_ask_for_opposite_nodes() -> None:
    spec = kuberay_spec("raycluster")

    def terms(group: dict[str, Any]) -> list[dict[str, Any]]:
        rules = group["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        return [one for term in rules["nodeSelectorTerms"] for one in term["matchExpressions"]]

    never = {(t["key"], t["operator"], *t["values"]) for t in terms(spec["headGroupSpec"])}
    for group in spec["workerGroupSpecs"]:
        assert {(t["key"], "NotIn", *t["values"]) for t in terms(group)} == never


def test_the_image_is_built_from_what_is_there() -> None:
    lines = (CONFIGS / "kuberay" / "Dockerfile").read_text().splitlines()
    assert any(line.startswith(f"FROM rayproject/ray:{version()}-py311-") for line in lines)
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[2:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)


def test_rays_schema_is_the_one_we_know() -> None:
    """A canary: what is read of Ray's private files is there."""
    node = cluster_schema()["properties"]["available_node_types"]["patternProperties"][".*"]
    assert node["additionalProperties"] is False
    assert {"resources", "node_config", "labels", "docker"} <= set(node["properties"])
