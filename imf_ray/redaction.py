"""Replaces secrets in texts, options and command lines that are shown or stored for people.

A secret is recognized by its position: in a URL (user name and password, query), or as the value of
a name such as `api_key`, `HF_TOKEN` or `--password`. Some kinds of keys have a known form.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from imf_ray.schema import all_options

MASK = "***"
"""Text that replaces a secret."""
SECRET_WORDS = {
    *("auth", "authorization", "cookie", "pass", "password", "pwd", "sas", "sig", "signature"),
    "token",
}
"""Words of a name that mark its value as a secret."""
SECRET_PARTS = (
    *("accesskey", "accesstoken", "accountkey", "apikey", "authkey", "authtoken"),
    *("connectionstring", "credential", "passphrase", "passwd", "password", "privatekey"),
    *("secret", "securitytoken", "sharedkey"),
)
"""Parts of a name without separators that mark its value as a secret."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s\"<>]+)")
_NAME = re.compile(r"""(?P<name>[\w.-]*\w)["']?\s*[=:]\s*|(?P<flag>(?<!\S)--?[\w-]+)\s+""")
_VALUE = re.compile(
    r"""(?:(?:bearer|basic|token)\s+)?(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;&}\])"']+)""",
    re.IGNORECASE,
)
_KNOWN_FORMS = re.compile(
    r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|hf_[A-Za-z0-9]{20,}"
    r"|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]+\.[\w-]*)"
)


def redact(text: str) -> str:
    """Return a text with each secret replaced by `MASK`."""
    text = _URL.sub(_redact_url, text)
    text = _redact_named(text)
    return _KNOWN_FORMS.sub(MASK, text)


def redact_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options, or any other nested names and values, without secrets.

    The value of a name that marks a secret is replaced as a whole. The options of the package are
    no secrets themselves, but their texts may contain some.
    """
    return {
        key: MASK if _is_secret_value(key, value) else _redact_value(value)
        for key, value in options.items()
    }


def redact_command(arguments: Sequence[str]) -> str:
    """Return a command line without secrets, quoted so that a shell reads the same arguments."""
    redacted: list[str] = []
    for index, argument in enumerate(arguments):
        before = arguments[index - 1] if index else ""
        name, separator, _ = argument.partition("=")
        if separator and _is_secret_value(name.lstrip("-"), argument):
            redacted.append(f"{name}={MASK}")
        elif before.startswith("-") and "=" not in before and _is_secret_name(before):
            redacted.append(MASK)
        else:
            redacted.append(redact(argument))
    return shlex.join(redacted)


def _redact_value(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return redact_options(value)
    if isinstance(value, (list, tuple)):
        return [_redact_value(item) for item in value]
    return value


def _is_secret_value(key: str, value: Any) -> bool:
    is_flag = value is None or isinstance(value, bool)
    return not is_flag and key not in all_options() and _is_secret_name(key)


def _is_secret_name(name: str) -> bool:
    """Return True if a name, such as `aws_secret_access_key`, marks its value as a secret."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)
    lowered = [word.lower() for word in words]
    joined = "".join(lowered)
    return bool(SECRET_WORDS & set(lowered)) or any(part in joined for part in SECRET_PARTS)


def _redact_url(match: re.Match[str]) -> str:
    """Remove user name, password and query from a URL."""
    scheme, rest = match.groups()
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # Keys may contain a slash that was not encoded, but `host:8080/a@b` has no password.
    has_password = re.search(r":(?!\d*$)", authority) is not None
    if "@" in (rest if has_password else authority):
        rest = f"{MASK}@{rest.rpartition('@')[2] if has_password else rest.partition('@')[2]}"
    path, question_mark, _query = rest.partition("?")
    rest = f"{path}?{MASK}" if question_mark else path
    path, number_sign, fragment = rest.partition("#")
    return f"{scheme}{path}#{MASK}" if number_sign and "=" in fragment else f"{scheme}{rest}"


def _redact_named(text: str) -> str:
    """Replace the values of names that mark them as secrets."""
    parts, position = [], 0
    for match in _NAME.finditer(text):
        name = match["name"] or match["flag"]
        if match.start() < position or name in all_options() or not _is_secret_name(name):
            continue
        value = _VALUE.match(text, match.end())
        if value is not None:
            parts += [text[position : match.end()], MASK]
            position = value.end()
    return "".join([*parts, text[position:]])
