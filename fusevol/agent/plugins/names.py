"""Names as apimachinery validates them (pkg/api/validate/content): each function returns the texts of what is wrong."""

from __future__ import annotations

import re

_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_KEY = "[-._a-zA-Z0-9]+"

MAX_QUALIFIED = 63
MAX_LABEL = 63
MAX_SUBDOMAIN = 253

_QUALIFIED_TEXT = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
    f" (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with"
    f" an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and"
    f" end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_KEY_TEXT = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',"
    f"  or 'key-name', regex used for validation is '{_KEY}')"
)


def qualified_name_errors(name: str) -> list[str]:
    """IsQualifiedName: a label's or annotation's key, a plugin's name."""
    prefix, slash, local = name.rpartition("/")
    if "/" in prefix:
        optional = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        return [f"a valid label key {_QUALIFIED_TEXT} {optional}"]
    errors: list[str] = []
    if slash:
        errors += [f"prefix part {text}" for text in (subdomain_errors(prefix) if prefix else ["must be non-empty"])]
    if not local:
        errors.append("name part must be non-empty")
    elif len(local.encode(errors="surrogatepass")) > MAX_QUALIFIED:
        errors.append(f"name part {_too_long(MAX_QUALIFIED)}")
    if not re.fullmatch(_QUALIFIED, local):
        errors.append(f"name part {_QUALIFIED_TEXT}")
    return errors


def label_errors(name: str) -> list[str]:
    """IsDNS1123Label: the name of a namespace, a volume, a container."""
    errors = [_too_long(MAX_LABEL)] if len(name) > MAX_LABEL else []
    if not re.fullmatch(_LABEL, name):
        errors.append("must not contain dots" if re.fullmatch(_SUBDOMAIN, name) else _LABEL_TEXT)
    return errors


def subdomain_errors(name: str) -> list[str]:
    """IsDNS1123Subdomain: the name of a Pod, a ConfigMap, a Secret, a Node."""
    errors = [_too_long(MAX_SUBDOMAIN)] if len(name) > MAX_SUBDOMAIN else []
    if not re.fullmatch(_SUBDOMAIN, name):
        errors.append(_SUBDOMAIN_TEXT)
    return errors


def key_errors(key: str) -> list[str]:
    """IsConfigMapKey: a key of a ConfigMap's or Secret's data (KUBELET.md 3.7)."""
    errors = [_too_long(MAX_SUBDOMAIN)] if len(key.encode(errors="surrogatepass")) > MAX_SUBDOMAIN else []
    if not re.fullmatch(_KEY, key):
        errors.append(_KEY_TEXT)
    if key in (".", ".."):
        errors.append(f"must not be '{key}'")
    elif key.startswith(".."):
        errors.append("must not start with '..'")
    return errors


def _too_long(limit: int) -> str:
    return f"must be no more than {limit} bytes"
