"""What each provider says, by its documentation: notices, no notices, and what is none of both."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shoal.notices import aws, azure, gcp
from tests.support.metadata_services import azure_event

pytestmark = pytest.mark.unit

NOW = 1_505_722_800.0
"""2017-09-18T08:20:00Z."""


@pytest.mark.parametrize("action", ["terminate", "stop"])
def test_aws_interruption(action: str) -> None:
    found = aws.interruption(json.dumps({"action": action, "time": "2017-09-18T08:22:00Z"}), NOW)
    assert (found.deadline, found.certain) == (NOW + 120, True)
    assert action in found.what


def test_aws_hibernation_begins_at_once() -> None:
    assert aws.interruption('{"action": "hibernate", "time": "2017-09-18T08:22:00Z"}', NOW).deadline == NOW


@pytest.mark.parametrize("time", ["", "soon", None, 12])
def test_aws_interruption_without_a_time_is_one_all_the_same(time: Any) -> None:
    assert aws.interruption(json.dumps({"action": "terminate", "time": time}), NOW).deadline == NOW + aws.NOTICE_S


@pytest.mark.parametrize("body", ["", "<html>", "[]", "null", "{}", '{"action": "dance"}', '{"time": "x"}'])
def test_aws_garbage_is_no_notice(body: str) -> None:
    with pytest.raises(ValueError):
        aws.interruption(body, NOW)


def test_aws_rebalance_is_a_recommendation() -> None:
    assert not aws.rebalance('{"noticeTime": "2020-10-27T08:22:00Z"}', NOW).certain
    with pytest.raises(ValueError):
        aws.rebalance("{}", NOW)


def test_gcp_preemption() -> None:
    assert gcp.preemption("FALSE", NOW) is None
    found = gcp.preemption("TRUE\n", NOW)
    assert found is not None
    assert found.deadline == NOW + 30
    with pytest.raises(ValueError):
        gcp.preemption("<html>TRUE</html>", NOW)


def test_gcp_maintenance() -> None:
    assert gcp.maintenance("NONE", NOW) is None
    assert gcp.maintenance("MIGRATE_ON_HOST_MAINTENANCE", NOW) is None
    found = gcp.maintenance("TERMINATE_ON_HOST_MAINTENANCE", NOW)
    assert found is not None
    assert found.deadline == NOW + 60
    with pytest.raises(ValueError):
        gcp.maintenance("PERHAPS", NOW)


def events(*found: dict[str, Any]) -> str:
    return json.dumps({"DocumentIncarnation": 2, "Events": list(found)})


@pytest.mark.parametrize("kind", ["Preempt", "Terminate", "Redeploy", "Reboot"])
def test_azure_events_that_end_a_machine(kind: str) -> None:
    found = azure.event(events(azure_event(kind, "pool_3", NOW + 30)), "POOL_3", NOW)
    assert found is not None
    assert found.deadline == NOW + 30
    assert kind in found.what


def test_azure_events_of_others_and_pauses_are_none() -> None:
    said = events(
        azure_event("Preempt", "pool_4", NOW + 30),
        azure_event("Freeze", "pool_3", NOW + 30),
        azure_event("Preempt", "pool_3", NOW + 30, EventStatus="Completed"),
        azure_event("Preempt", "pool_3", NOW + 30, EventStatus="Canceled"),
    )
    assert azure.event(said, "pool_3", NOW) is None
    assert azure.event(events(), "pool_3", NOW) is None


def test_azure_the_earliest_counts_and_one_that_has_begun_is_now() -> None:
    started = azure_event("Preempt", "pool_3", NOW, EventStatus="Started", NotBefore="")
    later = azure_event("Terminate", "pool_3", NOW + 300)
    found = azure.event(events(later, started), "pool_3", NOW)
    assert found is not None
    assert found.deadline == NOW
    unsaid = azure.event(events(azure_event("Preempt", "pool_3", NOW, NotBefore="")), "pool_3", NOW)
    assert unsaid is not None
    assert unsaid.deadline == NOW + azure.LEAST_S


@pytest.mark.parametrize("body", ["", "<html>", "[]", "{}", '{"Events": 3}', '{"Events": ["x"]}'])
def test_azure_garbage_is_no_notice(body: str) -> None:
    with pytest.raises(ValueError):
        azure.event(body, "pool_3", NOW)
