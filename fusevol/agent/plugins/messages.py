"""kubelet's messages that more than one plugin has, and how it joins several."""

from __future__ import annotations

from collections.abc import Iterable

NO_DEFAULT_MODE = "no defaultMode used, not even the default value for it"


def aggregate(messages: Iterable[str]) -> str:
    """utilerrors.Aggregate: one message as it is, several as `[a, b]`, each once."""
    distinct = list(dict.fromkeys(messages))
    return distinct[0] if len(distinct) == 1 else f"[{', '.join(distinct)}]"
