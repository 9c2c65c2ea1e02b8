"""Scores of an answer against a reference answer.

`token_f1` and its normalisation are those of the evaluation script of SQuAD 2.0.

Source: Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016,
https://arxiv.org/abs/1606.05250, section 6.1, and https://rajpurkar.github.io/SQuAD-explorer/.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from app.core import strict_json
from app.core.job.scores.report import Scores

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def is_exact_match(answer: str, reference: str) -> bool:
    """Whether an answer equals its reference, but for whitespace around the two."""
    return answer.strip() == reference.strip()


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words of an answer, from 0 to 1.

    Both texts are put into lower case, and lose ASCII punctuation and the articles `a`, `an` and
    `the`. Words are what whitespace separates. A word that both texts have counts as often as the
    text has it that has it less often; precision is this count in parts of the words of the answer,
    recall in parts of those of the reference. If one of them has no word left, it is 1 if neither
    has one, and otherwise 0.
    """
    answered, expected = _words(answer), _words(reference)
    if not answered or not expected:
        return float(answered == expected)
    common = (Counter(answered) & Counter(expected)).total()
    return 2 * common / (len(answered) + len(expected))


def is_json(text: str) -> bool:
    """Whether a text is one JSON object or array, with nothing but whitespace around it."""
    try:
        value = strict_json.loads(text.strip().encode())
    except (strict_json.StrictJsonError, UnicodeEncodeError):
        return False
    return isinstance(value, dict | list)


def score(pairs: Sequence[tuple[str, str]]) -> Scores | None:
    """The scores of one model. None if there is no answer.

    Args:
        pairs: each answer with its reference.
    """
    if not pairs:
        return None
    of_json = [answer for answer, reference in pairs if is_json(reference)]
    return Scores(
        exact_match=sum(is_exact_match(*pair) for pair in pairs) / len(pairs),
        token_f1=sum(token_f1(*pair) for pair in pairs) / len(pairs),
        valid_json=sum(map(is_json, of_json)) / len(of_json) if of_json else None,
    )


def _words(text: str) -> list[str]:
    bare = text.lower().translate(_WITHOUT_PUNCTUATION)
    return _ARTICLES.sub(" ", bare).split()
