"""How near a generated text is to the one that was expected."""

from __future__ import annotations

import re

_WORDS = re.compile(r"\w+")


def exact_match(text: str, expected: str) -> float:
    """Return 1 if two texts are the same but for white space, else 0."""
    return float(text.split() == expected.split())


def rouge_l(text: str, expected: str) -> float:
    """Return ROUGE-L: the F-measure of the longest common subsequence of words.

    Words are runs of letters and digits of any script, in lower case and unstemmed, so English text scores as with the
    package `rouge-score`, which knows no letters but a to z. Lin, 2004, "ROUGE: A Package for Automatic Evaluation
    of Summaries", equations 2 to 4 with beta = 1.

    Args:
        text: What was generated.
        expected: The reference.

    Returns:
        From 0, no word in common, to 1, the same words.
    """
    found, wanted = (_WORDS.findall(words.lower()) for words in (text, expected))
    if not found or not wanted:
        return float(found == wanted)
    common = _longest_common_subsequence(found, wanted)
    return 2 * common / (len(found) + len(wanted))


def _longest_common_subsequence(left: list[str], right: list[str]) -> int:
    before = [0] * (len(right) + 1)
    for word in left:
        row = [0]
        for place, other in enumerate(right):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[place]))
        before = row
    return before[-1]
