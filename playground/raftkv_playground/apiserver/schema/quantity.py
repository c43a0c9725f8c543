"""Kubernetes quantities: ``500m``, ``64Mi``, ``1e3``."""

from __future__ import annotations

import re
from decimal import Decimal

_FORM = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([KMGTPE]i|[numkMGTPE]))?$")
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse(text: str | float) -> Decimal:
    """The exact value. ``ValueError`` with the server's words if the text is no quantity."""
    match = _FORM.match(str(text))
    if match is None:
        raise ValueError("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")
    number, exponent, suffix = match.groups()
    if exponent:
        return Decimal(number + exponent)
    if suffix in _BINARY:
        return Decimal(number) * Decimal(1024 ** _BINARY[suffix])
    return Decimal(number).scaleb(_DECIMAL[suffix or ""])


def canonical(text: str | float) -> str:
    """The form that the server stores: same value and format, the largest suffix that leaves no fraction."""
    raw = str(text)
    value = parse(raw)
    if raw.endswith("i"):
        for suffix, power in reversed(_BINARY.items()):
            if value and value % 1024**power == 0:
                return f"{int(value / 1024**power)}{suffix}"
        return str(int(value)) if value == int(value) else str(value)
    if "e" in raw or "E" in raw[:-1]:
        return raw
    for suffix, power in reversed(_DECIMAL.items()):
        scaled = value.scaleb(-power)
        if value and scaled == scaled.to_integral_value():
            return f"{int(scaled)}{suffix}"
    return "0"
