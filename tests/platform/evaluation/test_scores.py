from __future__ import annotations

import pytest

from rankloom.evaluation.scores import exact_match, rouge_l


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    """The example of rouge-score's own README: 5 words of 8 and of 9 in common order."""
    expected, text = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    assert rouge_l(text, expected) == pytest.approx(2 * 5 / (8 + 9))
    assert rouge_l(text, expected) == rouge_l(expected, text)


@pytest.mark.parametrize(
    ("text", "expected", "score"),
    [
        ("", "", 1.0),
        ("", "a word", 0.0),
        ("a word", "", 0.0),
        ("...", "?!", 0.0),  # no word in either, and not the same
        ("<", ">", 0.0),
        (" < ", "<", 1.0),
        ("snake_case", "snake case", 1.0),  # as in rouge-score, which takes a to z and 0 to 9
        ("Alpha, beta!", "alpha beta", 1.0),
        ("beta alpha", "alpha beta", 0.5),
        ("Überraschung für Ödön", "überraschung für ödön", 1.0),  # letters beyond a to z are letters
        ("u\u0308ber", "\u00fcber", 1.0),  # one letter, written in two ways
        ("हिन्दी भाषा", "हिन्दू भाषा", 0.5),  # marks belong to their letters
        ("один два три", "один три", 0.8),
    ],
)
def test_rouge_l_of(text: str, expected: str, score: float) -> None:
    assert rouge_l(text, expected) == pytest.approx(score)


def test_an_exact_match_is_one_but_for_white_space() -> None:
    assert exact_match(" the  boy\n", "the boy") == 1
    assert exact_match("The boy", "the boy") == 0
    assert exact_match("the boy.", "the boy") == 0
