"""The recognition a list of regular expressions reaches: textbook marks of insecure code.

Shown beside a model's AUC, because a model that learned such marks has learned known patterns and no more.
"""

import re

_PATTERNS = [
    re.compile(pattern)
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
        r"timeout=None",
    )
]


def suspicious_patterns(code: str) -> int:
    """How many of the patterns occur in the code."""
    return sum(1 for pattern in _PATTERNS if pattern.search(code))
