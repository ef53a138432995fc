"""The table of routes: sticky shares, growth that moves keys one way, the dark share, and what a model name means."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.routes import WHOLE, Backend, Mirror, Route, RouteTable, choose, mirrored

KEYS = [f"session-{number}" for number in range(4000)]


def backend(revision: int, weight: int) -> Backend:
    return Backend(app=f"bot--r{revision}", model=f"student@{revision}", revision=revision, weight=weight)


def split(canary: int, name: str = "bot") -> Route:
    return Route(name=name, backends=(backend(1, WHOLE - canary), backend(2, canary)))


def of_canary(route: Route) -> set[str]:
    return {key for key in KEYS if choose(route, key).revision == 2}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, WHOLE))
def test_a_share_is_what_its_weight_says(weight):
    share = weight / WHOLE
    spread = math.sqrt(len(KEYS) * share * (1 - share))
    assert abs(len(of_canary(split(weight))) - len(KEYS) * share) <= 5 * spread + 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, WHOLE), st.integers(0, WHOLE))
def test_a_growing_canary_only_gains_keys(one, other):
    less, more = sorted((one, other))
    assert of_canary(split(less)) <= of_canary(split(more))


@given(st.text(), st.integers(0, WHOLE))
def test_a_key_is_always_answered_by_the_same_one(key, weight):
    assert choose(split(weight), key) == choose(split(weight), key)


def test_deployments_divide_their_keys_independently():
    both = of_canary(split(5000)) & of_canary(split(5000, name="other"))
    assert abs(len(both) - len(KEYS) / 4) < 5 * math.sqrt(len(KEYS) * 3 / 16)


def test_the_dark_share_is_independent_of_the_split():
    route = Route(name="bot", backends=split(0).backends, mirror=Mirror(app="bot--r2", revision=2, share=0.25))
    dark = [key for key in KEYS if mirrored(route, key)]
    assert abs(len(dark) - len(KEYS) / 4) < 5 * math.sqrt(len(KEYS) * 3 / 16)
    assert {mirrored(route, key).revision for key in dark} == {2}
    assert all(choose(route, key).revision == 1 for key in KEYS)


def test_all_or_nothing_is_mirrored_at_the_ends():
    backends = split(0).backends
    everything = Route(name="bot", backends=backends, mirror=Mirror(app="bot--r2", revision=2, share=1.0))
    assert all(mirrored(everything, key) for key in KEYS)
    nothing = Route(name="bot", backends=backends, mirror=Mirror(app="bot--r2", revision=2, share=0.0))
    assert not any(mirrored(nothing, key) for key in KEYS)


def test_a_name_is_a_deployment_or_a_version_that_lives():
    table = RouteTable(routes=(split(100), Route(name="student@9", backends=())))
    assert table.named("bot") == (table.routes[0], None)
    assert table.named("student@2") == (table.routes[0], table.routes[0].backends[1])
    assert table.named("student@9") == (table.routes[1], None)
    assert table.named("student@7") is None


def test_a_route_without_a_revision_has_nobody_to_choose():
    with pytest.raises(LookupError, match="no revision of bot answers yet"):
        choose(Route(name="bot", backends=()), "any")


def test_the_one_who_answers_for_a_failing_canary_is_the_live_one_whatever_its_weight():
    for canary in (0, 100, WHOLE):
        route = split(canary)
        assert route.stable == route.backends[0]
        assert route.model_copy(update={"live": 2}).stable == route.backends[1]
    assert Route(name="bot", backends=()).stable is None
    with pytest.raises(ValidationError, match="live revision 3 is none of"):
        Route(name="bot", backends=split(0).backends, live=3)


def test_a_revision_is_never_asked_in_the_dark_what_it_answered_itself():
    route = Route(
        name="bot", backends=split(WHOLE).backends, live=2, mirror=Mirror(app="bot--r2", revision=2, share=1.0)
    )
    assert not any(mirrored(route, key) for key in KEYS)


def test_weights_that_do_not_add_up_are_refused():
    with pytest.raises(ValidationError, match="weights add up to 9000"):
        Route(name="bot", backends=(backend(1, 9000),))
    with pytest.raises(ValidationError, match="list the oldest first"):
        Route(name="bot", backends=(backend(2, 5000), backend(1, 5000)))
