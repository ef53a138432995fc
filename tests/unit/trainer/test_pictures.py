"""The pictures: legible on light and dark, alone on their page, and true to their figures."""

import re
import xml.etree.ElementTree as ET

import numpy as np

from trainer.pictures import Bar, Curve, bars, curves, running_mean

THREE = [
    Bar("teacher", "Teacher", 0.98, (0.97, 0.99), "98.0 %"),
    Bar("student", "Student", 0.5, None, "50.0 %"),
    Bar("baseline", "Student alone", 0.0, (0.0, 0.0), "0.0 %"),
]


def rectangle_widths(svg):
    """Widths of the filled shapes, by the variable that fills them."""
    widths = {}
    for path, fill in re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--(\w+)\)', svg):
        places = [float(x) for x in re.findall(r"[ML] (\S+)", path)]
        widths[fill] = max(places) - min(places)
    return widths


def test_bars_are_as_long_as_their_figures():
    widths = rectangle_widths(bars(THREE, form="percent", title="Exact match"))
    assert abs(widths["student"] / widths["teacher"] - 0.5 / 0.98) < 1e-3
    assert widths["baseline"] == 0


def test_every_colour_is_a_variable_of_the_page():
    for svg in (bars(THREE, form="percent", title="a"), curves([Curve("student", "Student", [1], [2.0])], title="b")):
        assert not re.findall(r"(?:fill|stroke): #", svg)
        assert "var(--text)" in svg or "var(--muted)" in svg


def test_a_picture_is_a_well_formed_element_without_a_fixed_size():
    svg = bars(THREE, form="number", title='a "title" & more')
    root = ET.fromstring(svg)
    assert root.attrib["aria-label"] == 'a "title" & more'
    assert "width" not in root.attrib
    assert "<style" not in svg


def test_pictures_do_not_share_names():
    named = [set(re.findall(r'id="([^"]+)"', bars(THREE, form="percent", title=title))) for title in ("a", "b")]
    assert not named[0] & named[1]


def test_the_same_figures_give_the_same_picture():
    assert bars(THREE, form="percent", title="a") == bars(THREE, form="percent", title="a")


def test_a_loss_that_falls_far_has_a_logarithmic_axis():
    near, far = ([7.0, 3.0, 1.0], [7.0, 0.3, 0.01])
    texts = [
        re.findall(r"<text[^>]*>([^<]+)</text>", curves([Curve("student", "Student", [1, 2, 3], values)], title="Loss"))
        for values in (near, far)
    ]
    assert "0.1" not in texts[0]
    assert {"0.01", "0.1", "1"} <= set(texts[1])


def test_the_running_mean_of_a_line_is_the_line():
    line = np.linspace(3.0, 1.0, 50)
    np.testing.assert_allclose(running_mean(line, 5), line)
    assert running_mean(np.array([0.0, 3.0, 0.0]), 1).tolist() == [0.0, 1.0, 0.0]
