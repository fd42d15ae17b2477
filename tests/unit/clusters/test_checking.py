"""`shoal cluster check` on files that somebody has edited: every mistake is named with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from shoal.cli.main import run
from shoal.clusters.checking import check
from shoal.errors import ConfigError
from shoal.ray_compat import azure_parameters, filled_out

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "cluster_configs"


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def edited(tmp_path: Path, name: str, *changes: tuple[str, str]) -> Path:
    """A copy of a file with the first place of each text replaced."""
    text = (CONFIGS / name).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    copy = tmp_path / "mine.yaml"
    copy.write_text(text)
    return copy


def line_of(path: Path, text: str) -> int:
    return next(i for i, line in enumerate(path.read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("name", "old", "new", "at", "said"),
    [
        ("aws.yaml", "idle_timeout_minutes: 5", "idle_timeout_minute: 5", "idle_timeout_minute:",
         "idle_timeout_minute: there is no such setting here; did you mean \"idle_timeout_minutes\""),
        ("aws.yaml", "max_workers: 16\nidle", "max_workers: many\nidle", "max_workers: many",
         "max_workers: 'many' is a string, and must be of the type integer"),
        ("aws.yaml", "resources: {CPU: 4}", "resources: {CPU: 4.5}", "CPU: 4.5", "CPU: 4.5 is a number, and must be"),
        ("aws.yaml", "head_node_type: head", "head_node_type: haed", "head_node_type: haed",
         "`head_node_type` must be one of `available_node_types`"),
        ("aws.yaml", "InstanceType: m5.xlarge", "InstanceTyp: m5.xlarge", "node_config:", "InstanceType is missing"),
        ("aws.yaml", "VolumeType: gp3", "VolumeTyp: gp3", "VolumeTyp:", "VolumeTyp"),
        ("aws.yaml", "InstanceMarketOptions:", "InstanceMarketOption:", "InstanceMarketOption:",
         "EC2 has no such setting; did you mean \"InstanceMarketOptions\""),
        ("aws.yaml", "InstanceType: g5.xlarge", "InstanceType: g5.xlrage", "InstanceType: g5.xlrage",
         "did you mean \"g5.xlarge\""),
        ("aws.yaml", "InstanceMarketOptions: {MarketType: spot}", "Monitoring: {Enabled: false}", "type: spot",
         "says spot, but the machine is on-demand"),
        ("aws.yaml", "resources: {CPU: 4}", "resources: {CPU: 8}", "resources: {CPU: 8}", "8 are more than the 4 of"),
        ("aws.yaml", "pyproject.toml: pyproject.toml", "pyproject.toml: pyprojekt.toml", "pyprojekt.toml",
         "pyprojekt.toml is not in"),
        ("gcp.yaml", "provisioningModel: SPOT", "provisioningModel: SPOTT", "SPOTT", "did you mean \"SPOT\""),
        ("gcp.yaml", "diskSizeGb: 200", "diskSizeGB: 200", "diskSizeGB", "did you mean \"diskSizeGb\""),
        ("azure.yaml", "vmSize: Standard_D8s_v5", "vmsize: Standard_D8s_v5", "node_config:",
         "vmSize is missing"),
        ("azure.yaml", "osDiskSize: 200", "osDiskSize: big", "osDiskSize: big", "must be of the type int"),
        ("azure.yaml", "priority: Spot", "priority: Spto", "priority: Spto", "not one of Regular, Low, Spot"),
        ("kuberay/raycluster.yaml", "enableInTreeAutoscaling", "enableInTreeAutoscalling", "enableInTreeAutoscalling",
         "did you mean \"enableInTreeAutoscaling\""),
        ("kuberay/raycluster.yaml", "maxReplicas: 16", "maxReplicas: -1", "maxReplicas: -1", "less than minReplicas"),
        ("kuberay/raycluster.yaml", 'num-cpus: "0"', "num-cpus: 0", "num-cpus: 0", "must be of the type string"),
        ("kuberay/raycluster.yaml", "operator: NotIn", "operator: Notin", "operator: Notin", "'Notin' is not one of"),
        ("kuberay/raycluster.yaml", "kind: RayCluster", "kind: RayClusters", "kind: RayClusters",
         "did you mean \"RayCluster\""),
        ("kuberay/raycluster.yaml", "rayVersion: 2.60.0", "rayVersion: 2.9.0", "rayVersion", "says 2.9.0"),
        ("kuberay/rayjob.yaml", "backoffLimit: 0", "backofLimit: 0", "backofLimit", "did you mean \"backoffLimit\""),
    ],
)  # fmt: skip
def test_a_mistake_is_found_in_its_line(tmp_path: Path, name: str, old: str, new: str, at: str, said: str) -> None:
    path = edited(tmp_path, name, (old, new))
    wrong = [f"{f.place}: {f.reason}" for f in check(path).errors if f.line == line_of(path, at)]
    assert any(said in one for one in wrong), check(path).errors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cluster_name: a\n  provider: {type: aws}\n", r":2: this is no YAML: mapping values are not allowed"),
        ("provider:\n\ttype: aws\n", r":2: this is no YAML: .*indent with spaces, not with tabs"),
        ("provider: {type: aws\ncluster_name: b\n", r":\d: this is no YAML"),
        ("provider: {type: aws}\nmax_workers: 1\nmax_workers: 2\n", r":3: max_workers stands here and in line 2"),
        ("a: &x 1\nb: *y\n", r":2: this is no YAML: found undefined alias"),
        ("", "is empty"),
        ("- 1\n- 2\n", "is no cluster's"),
        ("some: thing\n", "is no cluster's"),
    ],
)
def test_what_is_no_cluster_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        check(path)


@pytest.mark.parametrize("path", ["nowhere.yaml", "."])
def test_a_file_that_cannot_be_read(path: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        check(Path(path))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"provider: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(ConfigError, match="no YAML"):
        check(path)
    assert not (tmp_path / "made").exists()


def test_an_unknown_provider_is_told_in_rays_words(tmp_path: Path) -> None:
    path = edited(tmp_path, "aws.yaml", ("type: aws", "type: awz"))
    (finding,) = check(path).errors
    assert "Ray refuses this" in finding.reason
    assert "awz" in finding.reason


def test_what_would_work_badly_is_noted(tmp_path: Path) -> None:
    text = (CONFIGS / "aws.yaml").read_text()
    text = re.sub(r"RAY_health_check_\w+=\d+\s+", "", text)
    text = re.sub(r"\n *- nohup shoal watch-node.*", "", text).replace(
        "--autoscaling-config=~/ray_bootstrap_config.yaml", ""
    )
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    found = check(path)
    assert found.errors == ()
    notes = " ".join(f.reason for f in found.notes)
    assert "never grows or shrinks" in notes
    assert "13 to 16 s" in notes
    assert "watch-node" in notes


def test_ray_is_asked_without_a_change_to_what_was_read() -> None:
    config = yaml.safe_load((CONFIGS / "aws.yaml").read_text())
    before = yaml.safe_dump(config)
    filled_out(config)
    assert yaml.safe_dump(config) == before


def test_the_template_for_azure_is_the_one_we_know() -> None:
    """A canary: Ray's private template is where it was."""
    assert {"vmSize", "priority", "billingProfile", "osDiskSize", "availability_zone"} <= set(azure_parameters())


CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rayclusters.ray.io}
spec:
  names: {kind: RayCluster}
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              required: [headGroupSpec, size]
              properties:
                headGroupSpec: {type: object, x-kubernetes-preserve-unknown-fields: true}
                workerGroupSpecs:
                  type: array
                  items: {type: object, properties: {cpus: {x-kubernetes-int-or-string: true}}}
                size: {type: integer, default: 3}
"""


def test_a_clusters_own_definition_decides(tmp_path: Path) -> None:
    crd, mine = tmp_path / "crd.yaml", tmp_path / "mine.yaml"
    crd.write_text(CRD)
    mine.write_text(
        "apiVersion: ray.io/v1\nkind: RayCluster\nmetadata: {name: a}\nspec:\n"
        "  headGroupSpec: {template: {spec: {containers: [{name: a}]}}}\n"
        "  workerGroupSpecs:\n    - cpus: 3\n    - cpus: 500m\n    - cpus: [4]\n  sise: 2\n"
    )
    found = [(f.line, f.reason) for f in check(mine, [crd]).errors]
    assert [line for line, _ in found] == [9, 10]
    assert 'did you mean "size"' in found[1][1]
    with pytest.raises(ConfigError, match="no definition of a RayCluster"):
        check(mine, [mine])
    with pytest.raises(ConfigError, match="nothing to do with --crd"):
        check(CONFIGS / "aws.yaml", [crd])


def test_the_command_says_what_a_cluster_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = edited(tmp_path, "azure.yaml", ("subscription_id: SUBSCRIPTION_ID", "subscription_id: abc"))
    assert run(["cluster", "check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "Standard_NC4as_T4_v3  spot" in said
    assert "$0.384 an hour with the fewest nodes, $1.56 with all of each" in said


def test_the_command_names_what_is_to_be_filled_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cluster", "check", "cluster_configs/gcp.yaml"]) == 2
    said = capsys.readouterr()
    assert "fill in  cluster_configs/gcp.yaml:25: provider.project_id: PROJECT_ID" in said.out
    assert "2 places need a hand" in said.err
