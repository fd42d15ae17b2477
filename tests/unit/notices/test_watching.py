"""The watcher against servers that behave like each provider, and against some that do not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shoal.errors import ConfigError
from shoal.notices import watching
from shoal.notices.endpoint import Endpoint
from shoal.notices.notice import Notice, Request
from shoal.notices.watching import PROVIDERS, find_provider, next_notice
from tests.support.metadata_services import MetadataService, azure_event, metadata_service

pytestmark = pytest.mark.unit

EVERY_S = 0.05
PATIENT_S = 30.0
QUICK_S = 0.3
"""How long an answer may take in these tests."""


@pytest.fixture(params=sorted(PROVIDERS))
def service(request: pytest.FixtureRequest) -> Iterator[MetadataService]:
    with metadata_service(request.param) as one:
        yield one


@pytest.fixture
def aws() -> Iterator[MetadataService]:
    with metadata_service("aws") as one:
        yield one


def hear(service: MetadataService, *acts: Callable[[], Any], heard: list[str] | None = None, **options: Any) -> Notice:
    """The watcher's first notice; between two looks that the service has seen, one `act` after another."""

    async def go() -> Notice:
        said = heard if heard is not None else []
        async with Endpoint(service.url, answer_s=QUICK_S) as endpoint:
            provider = await find_provider(endpoint, service.provider)
            waiting = asyncio.ensure_future(
                next_notice(provider, endpoint.ask, said.append, interval_s=EVERY_S, **options)
            )
            for act in acts:
                await _two_more_questions(service)
                act()
            return await asyncio.wait_for(waiting, PATIENT_S)

    return asyncio.run(go())


async def _two_more_questions(service: MetadataService) -> None:
    before, deadline = len(service.asked), time.monotonic() + PATIENT_S
    while len(service.asked) < before + 2:
        assert time.monotonic() < deadline, "the watcher asks no more"
        await asyncio.sleep(0.01)


def test_a_notice_is_heard(service: MetadataService) -> None:
    deadline = float(int(time.time()) + 30)
    found = hear(service, lambda: service.take(deadline))
    assert found.certain
    assert abs(found.deadline - deadline) < 3


def test_the_provider_is_found(service: MetadataService) -> None:
    async def go() -> str:
        async with Endpoint(service.url, answer_s=QUICK_S) as endpoint:
            return (await find_provider(endpoint)).name.lower()

    assert asyncio.run(go()) == service.provider


@pytest.mark.parametrize("how", ["hangs", "drips", "garbage", "fails"])
def test_a_service_that_misbehaves_ends_nothing(
    service: MetadataService, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is spoken of once, and what comes afterwards is heard."""
    monkeypatch.setattr(watching, "QUIET_S", 0.5)
    heard: list[str] = []
    service.how = how

    def mend() -> None:
        service.how = "well"

    patience = [lambda: None] * 3
    monkeypatch.setattr("shoal.notices.azure.FIRST_S", 0.0)
    found = hear(service, *patience, mend, lambda: service.take(time.time() + 30), heard=heard)
    assert found.certain
    assert len([h for h in heard if "cannot be used" in h]) <= 1
    if how in ("garbage", "fails"):
        assert "cannot be used" in heard[0]
        assert "answers again" in heard[1]


@pytest.mark.parametrize("how", ["hangs", "drips"])
def test_every_question_has_an_end(service: MetadataService, how: Any) -> None:
    service.how = how

    async def go() -> float:
        async with Endpoint(service.url, answer_s=QUICK_S) as endpoint:
            begun = time.monotonic()
            with pytest.raises(TimeoutError, match="did not answer within"):
                await endpoint.ask(Request("/latest/meta-data"))
            return time.monotonic() - begun

    assert asyncio.run(go()) < QUICK_S + 1.0


def test_a_service_that_hangs_is_spoken_of(aws: MetadataService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "QUIET_S", 0.5)
    heard: list[str] = []
    aws.how = "hangs"

    def mend() -> None:
        assert heard
        assert "did not answer within 0.3s" in heard[0]
        aws.how = "well"

    hear(aws, lambda: None, lambda: None, mend, lambda: aws.take(time.time() + 30), heard=heard)
    assert "answers again" in heard[-1]


def test_aws_an_expired_token_is_replaced(aws: MetadataService) -> None:
    hear(aws, aws.expire_token, lambda: aws.take(time.time() + 120))
    assert aws.tokens == 2


def test_aws_a_recommendation_is_followed_only_on_request(aws: MetadataService) -> None:
    heard: list[str] = []

    def recommend() -> None:
        aws.rebalance = True

    assert hear(aws, recommend, lambda: None, lambda: aws.take(time.time() + 120), heard=heard).certain
    assert len(heard) == 1
    assert "--rebalance" in heard[0]
    aws.deadline, aws.rebalance = None, False
    assert not hear(aws, recommend, recommendations=True).certain


def test_gcp_answers_at_the_moment_of_the_change() -> None:
    with metadata_service("gcp") as service:
        at: list[float] = []

        def take() -> None:
            at.append(time.monotonic())
            service.take(time.time() + 30)

        hear(service, take)
        assert time.monotonic() - at[0] < 1.0
        assert any("wait_for_change=true" in path for path in service.asked)


def test_gcp_maintenance_is_heard() -> None:
    with metadata_service("gcp") as service:

        def maintain() -> None:
            service.maintenance = True

        assert "maintenance" in hear(service, maintain).what


def test_azure_events_of_other_machines_are_not_followed() -> None:
    with metadata_service("azure") as service:
        service.events = [azure_event("Preempt", "pool_9", time.time() + 30)]
        found = hear(service, lambda: service.take(float(int(time.time()) + 30)))
        assert "Preempt" in found.what


def test_a_machine_on_no_cloud_is_told_so() -> None:
    async def go() -> None:
        async with Endpoint("http://127.0.0.1:9", answer_s=QUICK_S) as endpoint:
            await find_provider(endpoint, interval_s=0.01)

    with pytest.raises(ConfigError, match="--provider"):
        asyncio.run(go())


@pytest.mark.parametrize("base", ["", "169.254.169.254", "ftp://x", "http://", "http://x/latest"])
def test_an_address_that_is_none_is_refused(base: str) -> None:
    with pytest.raises(ConfigError, match="no address of a metadata service"):
        Endpoint(base)


def test_proxies_of_the_environment_are_not_used(aws: MetadataService, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert hear(aws, lambda: aws.take(time.time() + 120)).certain
