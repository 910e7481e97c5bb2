"""What is asked of the networks where alerts are judged, held back and joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Reach(Protocol):
    """The networks, as `twin.reach.Reach` knows them."""

    def reached(self, asset: str, along: str, within_m: float | None = None) -> Mapping[str, float]:
        """The assets `along` (`upstream`, `downstream`, `both`) of one, itself included, by their distance in metres
        along the network, no further than `within_m`; empty for one that is in no network. Asked again, it is cheap."""
        ...

    def knows(self, asset: str) -> bool:
        """Whether an asset is in a network."""
        ...
