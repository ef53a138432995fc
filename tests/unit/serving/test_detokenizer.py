"""Text in pieces equals text at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.detokenizer import AnswerText, Detokenizer, StopStrings, remembering
from serving.engine import GenerationRequest


def utf8(ids):
    """A tokenizer whose tokens are bytes."""
    return bytes(ids).decode(errors="replace")


def pieces(ids, decode=utf8):
    detokenizer = Detokenizer(decode)
    return [*(detokenizer.push(token) for token in ids), detokenizer.finish()]


@given(st.text())
def test_pieces_add_up_to_the_text_and_hold_no_half_character(text):
    parts = pieces(text.encode())
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts) or "\ufffd" in text


@given(st.lists(st.integers(0, 255)))
def test_any_bytes_add_up_to_what_they_decode_to(ids):
    assert "".join(pieces(ids)) == utf8(ids)


def test_a_character_comes_with_its_last_byte():
    assert pieces("é€".encode()) == ["", "é", "", "", "€", ""]


def test_bytes_that_never_become_a_character_come_at_the_end():
    assert pieces(b"a\xe2\x82") == ["a", "", "", "\ufffd"]


def test_a_decoder_that_drops_the_first_space_keeps_the_later_ones():
    words = {0: " you", 1: " are", 2: " here"}
    assert "".join(pieces([0, 1, 2, 1], lambda ids: "".join(words[each] for each in ids)[1:])) == "you are here are"


def test_pieces_of_a_real_tokenizer_add_up(loaded):
    for text in ("grüße, 你好 🙂 where is it?", "  two  spaces\n\n", "é" * 40):
        assert "".join(pieces(loaded.prompts.text(text), loaded.prompts.decode)) == text


def stopped(stops, parts):
    """What gets through, and whether a stop string came."""
    matcher, text = StopStrings(stops), ""
    for part in parts:
        piece = matcher.push(part)
        text += piece.text
        if piece.stopped:
            return text, True
    return text + matcher.finish(), False


@given(st.text("ab."), st.lists(st.text("ab.", min_size=1, max_size=3), min_size=1, max_size=3), st.data())
def test_text_is_cut_before_the_first_stop_string_however_it_arrives(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    # A shorter stop string that is complete ends the text, even where a longer one began before it.
    got, was_stopped = stopped(stops, parts)
    assert was_stopped == bool(found)
    assert text.startswith(got)
    if not found:
        assert got == text
    if len(stops) == 1 and found:
        assert got == text[: found[0]]


@pytest.mark.parametrize(("parts", "expected"), [(["Hel", "lo <", "en", "d> more"], "Hello "), (["<end>"], "")])
def test_nothing_of_a_stop_string_gets_out(parts, expected):
    assert stopped(["<end>"], parts) == (expected, True)


def test_a_beginning_that_led_nowhere_is_handed_out():
    assert stopped(["<end>"], ["a <en", "ough"]) == ("a <enough", False)
    assert stopped(["<end>"], ["a <en"]) == ("a <en", False)


@given(st.lists(st.lists(st.integers(0, 255), max_size=4), max_size=6))
def test_what_is_remembered_is_what_the_decoder_says(windows):
    asked = []
    decode = remembering(lambda ids: asked.append(tuple(ids)) or utf8(ids))
    for ids in [*windows, *windows]:
        assert decode(ids) == utf8(ids)
    short = [each for each in asked if len(each) <= 2]
    assert len(short) == len(set(short))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (GenerationRequest((1,), 100, stop=("<end>",)), ("it is ", "stop", 11)),
        (GenerationRequest((1,), 4), ("it i", "length", 4)),
        (GenerationRequest((1,), 100), ("it is <end> now", "stop", 16)),
    ],
)
def test_an_answer_ends_at_a_stop_string_its_length_or_an_end_token(request_, expected):
    text, pieces, reason = AnswerText(request_, utf8, frozenset({0})), [], None
    for token in b"it is <end> now\0and more":
        piece, reason = text.push(token)
        pieces.append(piece)
        if reason is not None:
            break
    assert ("".join(pieces), reason, text.num_tokens) == expected


def test_an_answer_that_is_complete_ends_with_what_was_held_back():
    text = AnswerText(GenerationRequest((1,), 9, stop=("ab",)), utf8, frozenset())
    assert text.push(ord("a")) == ("", None)
    assert text.push(0xE2, complete=True) == ("a\ufffd", "stop")
