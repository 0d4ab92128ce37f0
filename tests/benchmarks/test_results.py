from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import results
from benchmarks.pictures import svg, ticks
from benchmarks.results import Curve, Figure, Picture, entry, median, percentile, quantity
from benchmarks.rivals import LIMIT, OURS
from benchmarks.works.fanout import Race, Round, judge


def raced(ours: float | None, limit: float | None, **peers: float) -> Race:
    given = {OURS.name: ours, LIMIT.name: limit, **peers}
    rates = {name: rate for name, rate in given.items() if rate is not None}
    rounds = {name: {burst: [Round(rate, 0.5, 0.5)] for burst in (1, 10)} for name, rate in rates.items()}
    return Race(rounds, {} if ours is not None else {OURS.name: "failed: it crashed"})


@pytest.mark.parametrize(
    ("ours", "limit", "peer", "reached"),
    [
        (76.0, 100.0, 70.0, True),
        (74.0, 100.0, 70.0, False),
        (90.0, 100.0, 91.0, False),
        (90.0, None, 10.0, None),
    ],
)
def test_p1_needs_three_quarters_of_the_limit_and_no_peer_ahead(
    ours: float, limit: float | None, peer: float, reached: bool | None
) -> None:
    assert judge("P1", raced(ours, limit, picows=peer), 1, 1_000).reached is reached


@pytest.mark.parametrize(
    ("ours", "limit", "reached"),
    [(1.3e6, 9e6, True), (0.8e6, 1e6, True), (0.6e6, 1e6, False), (1.3e6, None, True), (0.6e6, None, None)],
)
def test_p2_needs_its_rate_or_its_share(ours: float, limit: float | None, reached: bool | None) -> None:
    assert judge("P2", raced(ours, limit), 10, 1_000).reached is reached


def test_a_server_that_crashed_has_no_figure() -> None:
    figure = judge("P1", raced(None, 100.0), 1, 1_000)
    assert figure.value is None
    assert figure.verdict == "not measured"
    assert figure.notes == ["failed: it crashed"]


def test_ratios_are_ours_to_theirs() -> None:
    assert judge("P1", raced(90.0, 100.0), 1, 10).ratios == {f"{LIMIT.name} (100/s)": 0.9}


def test_ratios_are_of_the_same_round() -> None:
    """The machine was half as fast in the last round: no server is slower for it than another."""
    ours = [Round(rate, 0.5, 1.0) for rate in (120.0, 118.0, 60.0)]
    theirs = [Round(rate, 0.5, 1.0) for rate in (100.0, 121.0, 50.0)]
    assert Race({OURS.name: {1: ours}, LIMIT.name: {1: theirs}}, {}).ratios(1) == {LIMIT.name: 1.2}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5.0), (0.99, 10.0), (0.01, 1.0), (0.9, 9.0)])
def test_percentiles_are_nearest_ranks(share: float, expected: float) -> None:
    assert percentile([float(number) for number in range(1, 11)], share) == expected


def test_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_the_median_was_seen() -> None:
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(999.4, "999"), (999.9, "1 k"), (193_456, "193 k"), (999_990, "1 M"), (1_634_000, "1.63 M"), (0.5, "0.5")],
)
def test_quantities_have_three_digits(value: float, text: str) -> None:
    assert quantity(value) == text


def test_an_entry_is_a_table_with_a_row_for_each_figure() -> None:
    figures = [
        Figure("P1", "fan | out", "1/s", "≥ 2/s", False, {"picows": 0.5}, 0.9, ["a\nnote"]),
        Figure.missing("P7", "bookings", "≥ 1,000/s", "not here: no MySQL"),
    ]
    text = entry(figures, whole=True, quick=True, quiet_load=0.1)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert all(row.count("|") == rows[0].count("|") for row in rows)
    assert "90% (!)" in text
    assert "quick run" in text
    assert "not measured" in rows[3]
    assert "UTC, full run\n" in entry(figures, whole=True, quick=False, quiet_load=0.1)
    assert "UTC, P1, P7 alone\n" in entry(figures, whole=False, quick=False, quiet_load=0.1)


def test_entries_are_added_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    results.record("## one\n", file)
    results.record("## two\n", file)
    text = file.read_text()
    assert text.startswith("# Results")
    assert text.index("## one") < text.index("## two")


def test_a_picture_is_well_formed_and_holds_every_point() -> None:
    curves = [Curve("ours & <theirs>", [(10, 1_000.0), (1_000, 5_000.0)]), Curve("one", [(100, 1.0)])]
    text = svg(Picture("x.svg", 'a "title"', "sockets", "per second", curves))
    root = ElementTree.fromstring(text)  # noqa: S314 — made above
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 3
    for circle in root.findall("{http://www.w3.org/2000/svg}circle"):
        assert 0 <= float(circle.attrib["cx"]) <= 720
        assert 0 <= float(circle.attrib["cy"]) <= 420


def test_no_picture_of_nothing() -> None:
    with pytest.raises(ValueError, match="no points"):
        svg(Picture("x.svg", "t", "x", "y", []))


@pytest.mark.parametrize("most", [0.3, 1.0, 7.0, 99.0, 100.0, 1_234_567.0])
def test_ticks_reach_the_top_and_are_few(most: float) -> None:
    marks = ticks(most)
    assert marks[0] == 0
    assert marks[-1] >= most * 0.999
    assert 2 <= len(marks) <= 7
