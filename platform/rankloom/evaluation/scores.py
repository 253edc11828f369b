"""How near a generated text is to the one that was expected."""

from __future__ import annotations

import unicodedata


def exact_match(text: str, expected: str) -> float:
    """Return 1 if two texts are the same but for white space, else 0."""
    return float(text.split() == expected.split())


def rouge_l(text: str, expected: str) -> float:
    """Return ROUGE-L: the F-measure of the longest common subsequence of words.

    Words are runs of letters with their marks and of digits, of any script, in lower case and unstemmed, so English
    text scores as with the package `rouge-score`, which knows no letters but a to z; a language that writes no spaces
    scores by whole phrases. Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", equations 2 to 4 with
    beta = 1.

    Args:
        text: What was generated.
        expected: The reference.

    Returns:
        From 0, no word in common, to 1, the same words; of two texts without words, whether they match exactly.
    """
    found, wanted = _words(text), _words(expected)
    if not found and not wanted:
        return exact_match(text, expected)
    common = _longest_common_subsequence(found, wanted)
    return 2 * common / (len(found) + len(wanted))


def _words(text: str) -> list[str]:
    composed = unicodedata.normalize("NFC", text.lower())
    return "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in composed).split()


def _longest_common_subsequence(left: list[str], right: list[str]) -> int:
    before = [0] * (len(right) + 1)
    for word in left:
        row = [0]
        for place, other in enumerate(right):
            row.append(before[place] + 1 if word == other else max(before[place + 1], row[place]))
        before = row
    return before[-1]
