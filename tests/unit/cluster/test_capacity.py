"""Placing all of a job or none of it, over drawn clusters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.capacity import Bundle, Demand, Placement, Resources, Returns, Space, shortage, total

amounts = st.builds(Resources, st.integers(0, 8).map(float), st.integers(0, 4).map(float))
clusters = st.lists(amounts, min_size=1, max_size=6)
demands = st.lists(st.builds(Bundle, st.integers(1, 4), amounts), min_size=1, max_size=3).map(tuple)


def taken(placement: Placement) -> Resources:
    return Resources(sum(part.cpus for _, part in placement), sum(part.gpus for _, part in placement))


@given(clusters, demands)
def test_what_is_placed_is_all_of_it_and_fits_where_it_is_put(nodes: list[Resources], demand: Demand) -> None:
    space = Space(nodes)
    placement = space.place(demand)
    if placement is None:
        assert shortage(nodes, demand)
        return
    assert taken(placement) == total(demand)
    assert space.has_room_for(placement)
    space.take(placement)
    assert (space.free_N2 >= 0).all()
    assert shortage(nodes, demand) == ""
    space.give_back(placement)
    assert (space.free_N2 == Space(nodes).free_N2).all()


@given(clusters, demands)
def test_what_runs_is_counted_in_full_even_where_it_has_no_room(nodes: list[Resources], demand: Demand) -> None:
    space = Space(nodes)
    assert taken(space.crowd(demand)) == total(demand)


@given(clusters, st.lists(demands, max_size=5), demands)
def test_no_more_must_come_back_than_is_needed(nodes: list[Resources], running: list[Demand], demand: Demand) -> None:
    space, placements = Space(nodes), list[Placement]()
    for one in running:
        placement = space.place(one)
        if placement is not None:
            space.take(placement)
            placements.append(placement)
    returns = Returns(space, placements)
    count = returns.enough_for(demand)
    if count is None:
        assert returns.after(len(placements)).place(demand) is None
    else:
        assert returns.after(count).place(demand) is not None
        assert count == 0 or returns.after(count - 1).place(demand) is None


def test_a_crowded_cluster_takes_nobody() -> None:
    space = Space([Resources(4.0)])
    space.take(space.crowd((Bundle(6, Resources(1.0)),)))
    assert space.free == Resources(-2.0, 0.0)
    assert space.place((Bundle(1, Resources(1.0)),)) is None


@pytest.mark.parametrize(
    ("demand", "words"),
    [
        ((Bundle(1, Resources(9.0, 1.0)),), "it asks for 9 CPUs and 1 GPU at once; the cluster has 8 CPUs and 2 GPUs"),
        ((Bundle(2, Resources(3.0, 0.0)), Bundle(2, Resources(1.0, 1.0))), ""),
        ((Bundle(1, Resources(5.0)),), "1 × 5 CPUs, each on one node; even empty, the nodes have room for 0"),
        ((Bundle(2, Resources(3.0)), Bundle(1, Resources(2.0))), "do not fit on the nodes together"),
    ],
)
def test_what_is_missing_is_said(demand: Demand, words: str) -> None:
    said = shortage([Resources(4.0, 1.0), Resources(4.0, 1.0)], demand)
    assert words in said
    assert bool(said) == bool(words)
