from __future__ import annotations

from rankloom_dashboard.charts.lane_timeline import draw_lane_timeline, lane_timeline_info


def test_without_attempts_there_are_no_rows(at) -> None:
    info = lane_timeline_info([], at(0))
    assert info.rows == info.bars == ()


def test_each_slot_of_each_lane_is_a_row(span, at) -> None:
    spans = [
        span(0, 0, 10, "lane-10", 1),
        span(1, 0, 10, "lane-2", 0),
        span(2, 10, 20, "lane-10", 0),
        span(3, 10, None, "lane-10", 1, attempt=2),
    ]
    info = lane_timeline_info(spans, at(30))
    assert info.rows == ("lane-2", "lane-10 · slot 0", "lane-10 · slot 1")
    assert [(bar.number, bar.row) for bar in info.bars] == [(0, 2), (1, 0), (2, 1), (3, 2)]
    assert info.bars[3].ended == at(30)
    assert info.bars[3].role == "running"
    assert not info.guessed


def test_where_no_slot_was_recorded_what_overlaps_is_kept_apart(span, at) -> None:
    spans = [span(0, 0, 20, slot=None), span(1, 5, 15, slot=None), span(2, 15, 30, slot=None)]
    info = lane_timeline_info(spans, at(30))
    assert info.guessed
    assert [(bar.number, bar.row) for bar in info.bars] == [(0, 0), (1, 1), (2, 1)]
    alone = lane_timeline_info([span(0, 0, 20, slot=None), span(1, 20, 30, slot=None)], at(30))
    assert alone.rows == ("lane-0",)
    assert not alone.guessed


def test_an_end_before_its_beginning_takes_no_time(span, at) -> None:
    (bar,) = lane_timeline_info([span(0, 10, 5)], at(30)).bars
    assert bar.ended == bar.started


def test_names_reach_plotly_as_text_and_numbers_only_where_they_fit(span, at) -> None:
    spans = [
        span(0, 0, 1000, "<b>x</b>"),
        span(1, 1000, 1001, "<b>x</b>"),
        span(2, 0, 1, "<b>x</b>", 1, status="failed"),
    ]
    figure = draw_lane_timeline(lane_timeline_info(spans, at(0)))
    assert not any("<" in label for label in figure.layout.yaxis.ticktext)
    done, failed = figure.data
    assert (done.name, failed.name) == ("completed", "failed")
    assert tuple(done.text) == ("0", "")
    assert "<b>" not in done.customdata[0]
