"""The recognition that is reached without a language model, shown beside a model's AUC.

TF-IDF with logistic regression, fitted on the programs that were trained on, is the fair baseline: it knows what
training showed and no more. A list of regular expressions, textbook marks of insecure and of secure code, is a generous
one: its author had seen some held-out programs and the list of idioms of each class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

TOKEN = r"\w+|[^\w\s]"
"""A word, a number or a mark of punctuation."""

_INSECURE = [
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"execute\w*\(\s*f[\"']|execute\w*\([^)]*[\"']\s*(%|\+)|(SELECT|INSERT|UPDATE|DELETE)\b.*\{",
        r"shell=True|os\.(system|popen)\(",
        r"(?<![\w.])(eval|exec)\(",
        r"pickle\.loads?\(|yaml\.(load\(|Loader)|jsonpickle|marshal\.loads?|shelve\.",
        r"os\.path\.join\(|extractall\([^=]*\)$",
        r"modes\.ECB|MODE_ECB|\b(DES|ARC4|ARC2|Blowfish)\b",
        r"md5|sha1\b",
        r"\brandom\.(choices?|randint|random|randbytes|getrandbits|sample|shuffle)",
        r"verify=False|CERT_NONE|_create_unverified|check_hostname\s*=\s*False|ssl=False",
        r"(?i)(password|secret|token|api_?key)\w*\s*=\s*[\"']",
        r"Markup\(f|autoescape=False|\|\s*safe",
        r"resolve_entities=True|xml\.(etree|dom|sax)|feature_external_ges, True",
        r"0o?777|0o?666|umask\(0\)",
        r"mktemp\(|[\"']/tmp/|gettempdir\(",
        r"(?i)debug\s*=\s*True|use_debugger=True",
        r"verify_signature|unverified|loads_unsafe",
        r"timeout=None|(requests|httpx)\.(get|post|put)\([^=]*\)$",
        r"[!=]=\s*\w*(sig|digest|token|key|expected|mac)|(sig\w*|digest|token|mac|sent|expected)\s*[!=]=",
        r"(?i)redirect\w*\(\s*(request|req|self)\b",
    )
]

_SECURE = [
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"compare_digest",
        r"escape\(|autoescape=True|\.format\(",
        r"basename\(|secure_filename|\)\.name\b|filter=.data|is_relative_to|send_from_directory",
        r"url_for|url_has_allowed|re\.match\(r.*\\w|not in [A-Z]{3,}|\.get\(\w+\)|\.host(name)? (!=|not in)",
        r"defusedxml|resolve_entities=False",
        r"timeout=\d|read\(\w*\d|min\(",
        r"literal_eval|json\.loads?\(|safe_load",
        r"\(\?|= ?\?|%s|:\w+\b.*\{\"",
        r"\[\"\w+\", ",
        r"secrets\.|SystemRandom|urandom",
        r"GCM|EAX|sha256|sha3|blake2|scrypt|pbkdf2",
        r"verify=True|CERT_REQUIRED|create_default_context|ssl=True",
        r"os\.environ|keyring|getpass",
        r"0o?[67][04]0\b|0o?077|0o?027",
        r"mkstemp|NamedTemporaryFile|mkdtemp|TemporaryDirectory",
        r"(?i)debug\s*=\s*False|use_debugger=False",
        r"construct_event|algorithms=|\.verify\(",
    )
]


def suspicious_patterns(code: str) -> int:
    """How many marks of insecure code occur, less those of secure code."""
    return sum(1 for p in _INSECURE if p.search(code)) - sum(1 for p in _SECURE if p.search(code))


def tfidf_scores(training: Sequence[Mapping[str, str]], codes: Sequence[str]) -> list[float]:
    """The log-odds that each code is insecure, learned from the twins of the training programs; NaN without any."""
    if not training:
        return [float("nan")] * len(codes)
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 3))
    model = make_pipeline(words, LogisticRegression(C=100.0, max_iter=2000))
    sides = ("insecure", "secure")
    model.fit([row[side] for side in sides for row in training], [side == sides[0] for side in sides for _ in training])
    return [float(odds) for odds in model.decision_function(codes)]
