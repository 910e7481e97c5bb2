"""What a request says of what it can take and what it holds already."""

from __future__ import annotations

import re


def takes_gzip(accepted: str) -> bool:
    """What an Accept-Encoding header says of gzip: the name itself counts before `*`."""
    weights = {}
    for item in accepted.lower().split(","):
        name, _, parameters = item.partition(";")
        weight = re.fullmatch(r"\s*q\s*=\s*([01](?:\.\d*)?)\s*", parameters)
        weights[name.strip()] = float(weight[1]) if weight else 1.0
    return weights.get("gzip", weights.get("*", 0.0)) > 0


def is_held(held: str, tag: str) -> bool:
    """Whether an If-None-Match header names this form of the file."""
    return any(item.strip().removeprefix("W/") in (tag, "*") for item in held.split(","))
