from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from rankloom_dashboard import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        ("", "–"),
        (True, "yes"),
        (16, "16"),
        (2e-4, "2.00e-4"),
        (0.0, "0"),
        (0.05, "0.05"),
        (1536.0, "1536"),
        (["q_proj", "v_proj"], "q_proj + v_proj"),
        ({"b": 1, "a": None}, '{"a": null, "b": 1}'),
        (float("nan"), "–"),
    ],
)
def test_values_read_well(value: object, text: str) -> None:
    assert formats.value(value) == text


@pytest.mark.parametrize(
    ("size", "text"), [(None, "–"), (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1_610_612_736, "1.5 GiB")]
)
def test_sizes_use_binary_units(size: int | None, text: str) -> None:
    assert formats.size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.5, "0.5 s"),
        (59.4, "59.4 s"),
        (59.96, "1 min 0 s"),
        (186, "3 min 6 s"),
        (3_599.7, "1 h 0 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float | None, text: str) -> None:
    assert formats.duration(seconds) == text


def test_times_are_iso_in_local_time() -> None:
    moment = datetime(2026, 3, 2, 9, 30, 15, 999, tzinfo=timezone(timedelta(hours=5)))
    shown = formats.when(moment)
    assert "." not in shown
    assert datetime.fromisoformat(shown) == moment.replace(microsecond=0)
    assert datetime.fromisoformat(shown).utcoffset() == moment.astimezone().utcoffset()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "just now"), (60, "1 minute ago"), (7_300, "2 hours ago"), (86_400, "1 day ago"), (-30, "just now")],
)
def test_ago_names_the_largest_unit(seconds: int, text: str) -> None:
    now = datetime(2026, 3, 2, tzinfo=UTC)
    assert formats.ago(now - timedelta(seconds=seconds), now) == text


def test_a_learning_rate_keeps_three_digits() -> None:
    assert formats.short(3.456e-5) == "3.46e-5"
    assert formats.short(1e-12) == "1.00e-12"


def test_a_base_given_by_path_is_shown_by_its_last_part() -> None:
    assert formats.base("/models/llama/base.gguf") == "base.gguf"
    assert formats.base("org/model@abc123") == "org/model@abc123"


@pytest.mark.parametrize(
    ("size", "text"),
    [(999 * 1024, "999 KiB"), (1000 * 1024, "1000 KiB"), (1024**2 - 1, "1024 KiB"), (1010 * 2**30, "1010 GiB")],
)
def test_a_size_just_below_the_next_unit_is_no_power_of_ten(size: int, text: str) -> None:
    assert formats.size(size) == text
