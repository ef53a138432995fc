from __future__ import annotations

import pytest

from cluster.errors import InvalidInput
from cluster.services.pages import make_token, page_size, read_token


@pytest.mark.parametrize(("wanted", "size"), [(0, 100), (1, 1), (1000, 1000), (5000, 1000)])
def test_page_sizes(wanted: int, size: int) -> None:
    assert page_size(wanted) == size


def test_negative_page_size() -> None:
    with pytest.raises(InvalidInput):
        page_size(-1)


def test_token_is_good_for_its_own_question() -> None:
    token = make_token(["bot", 7], ("models", "bot"))
    assert read_token(token, ("models", "bot"), [str, int]) == ["bot", 7]
    assert read_token("", ("models", "bot"), [str, int]) is None
    with pytest.raises(InvalidInput) as caught:
        read_token(token, ("models", "other"), [str, int])
    assert caught.value.reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize("token", ["x", "bm9uc2Vuc2U=", "W10=", "e30=", "MQ==", "ü"])
def test_tokens_that_are_none_of_ours(token: str) -> None:
    with pytest.raises(InvalidInput):
        read_token(token, ("jobs",), [int])
