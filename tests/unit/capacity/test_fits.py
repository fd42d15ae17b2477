"""What fits where, and what people are told where too little does."""

from __future__ import annotations

import pytest

from shoal.capacity.fits import Need, Node, missing, room
from shoal.errors import ConfigError
from shoal.labels import check_selector, meets, unmet

pytestmark = pytest.mark.unit


def need(cpus: float = 1.0, gpus: float = 0.0, **labels: str) -> Need:
    amounts = (("CPU", cpus), ("GPU", gpus)) if gpus else (("CPU", cpus),)
    return Need(amounts, tuple(labels.items()))


def node(name: str = "n", cpus: float = 4, free: float | None = None, gpus: float = 0, **labels: str) -> Node:
    has = {"CPU": cpus, "GPU": gpus}
    return Node(name, has, {**has, "CPU": cpus if free is None else free}, labels)


def test_room() -> None:
    assert room(node(), need(1.5), empty=True) == 2
    assert room(node(free=1), need(1.5), empty=False) == 0
    assert room(node(), need(0.1), empty=True) == 40, "tenths do not add up in binary"
    assert room(node(market="spot"), need(market="!spot"), empty=True) == 0


def test_no_node_is_large_enough() -> None:
    why = missing([node(cpus=4), node(cpus=2)], need(8), 1)
    assert not why.ever
    assert why.reason == "no node could ever hold one: CPU: 8 is wanted, and the most that a node has is 4"
    assert why.remedy == "lower workers.cpus to 4, or add larger nodes"
    assert missing([node(cpus=4), node(cpus=2)], need(8), 3).remedy.startswith("lower workers.cpus to 2,")


def test_no_node_has_what_is_wanted() -> None:
    why = missing([node()], need(1, gpus=1), 1)
    assert "GPU: 1 is wanted, and the most that a node has is 0" in why.reason
    assert "workers.gpus" in why.remedy
    why = missing([node(cpus=1, gpus=1), node(cpus=4)], need(2, gpus=1), 1)
    assert "lower workers.cpus to 1" in why.remedy
    assert "there are no nodes" in missing([], need(), 1).reason


def test_no_node_has_the_label() -> None:
    why = missing([node(market="on-demand"), node()], need(market="spot"), 1)
    assert why.reason == "no node could ever hold one: market=spot is wanted, and the nodes have on-demand"
    assert "workers.label_selector" in why.remedy
    assert "no such label" in missing([node()], need(market="spot"), 1).reason


def test_too_few_nodes() -> None:
    why = missing([node(cpus=4), node(cpus=2)], need(2), 4)
    assert not why.ever
    assert why.reason == "the nodes could hold 3 of them in all, if nothing else were there"
    assert why.remedy == "what would fit: workers.min=3, or workers.cpus=1.3333; or add nodes"


def test_others_are_there() -> None:
    why = missing([node(cpus=4, free=1)], need(2), 2, reading=1.0)
    assert why.ever
    assert "have room for 0 more: in use are CPU 3 of 4 (with data.cpus=1, kept for reading)" in why.reason
    assert "workers.priority" in why.remedy


@pytest.mark.parametrize(
    ("condition", "value", "met"),
    [
        ("spot", "spot", True), ("spot", "on-demand", False), ("spot", None, False),
        ("!spot", "spot", False), ("!spot", "on-demand", True), ("!spot", None, True),
        ("in(a, b)", "b", True), ("in(a,b)", "c", False), ("!in(a, b)", "a", False), ("!in(a, b)", None, True),
    ],
)  # fmt: skip
def test_conditions(condition: str, value: str | None, met: bool) -> None:
    check_selector("workers.label_selector", [("market", condition)])
    assert meets(condition, value) is met
    assert bool(unmet([("market", condition)], {} if value is None else {"market": value})) is not met


@pytest.mark.parametrize(
    "selector", [("a b", "x"), ("", "x"), ("a", "x y"), ("a", ""), ("a", "in()"), ("-a", "x"), ("a", "!!x")]
)
def test_what_ray_would_refuse_is_refused_with_the_name_of_the_value(selector: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"workers\.label_selector has the"):
        check_selector("workers.label_selector", [selector])


def test_what_would_fit_counts_those_that_have_a_place_already() -> None:
    one = Node("a", {"CPU": 12.0}, {"CPU": 8.0}, {})
    why = missing([one], Need((("CPU", 4.0),)), 7, found=1)
    assert "workers.min=3, or workers.cpus=1.7142" in why.remedy
