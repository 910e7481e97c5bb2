"""What is asked of the networks where alerts are judged, held back and joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from twin.model import Indices


class Reach(Protocol):
    """The networks, as `twin.reach.Reach` knows them."""

    @property
    def changes(self) -> int:
        """How often what is known has changed: answers that were kept may be others now."""
        ...

    def reached(self, asset: str, along: str, within_m: float | None = None) -> Mapping[str, float]:
        """The assets `along` (`upstream`, `downstream`, `both`) of one, itself included, by their distance in metres
        along the network, no further than `within_m`; empty for one that is in no network. Asked again, it is cheap."""
        ...

    def nearest(self, assets: Sequence[str], along: str, within_m: float, most: int) -> Indices:
        """For each of these assets the nearest `most` of them `along` it, at most `within_m` metres along the network
        away: their places in `assets` [n, most], itself first, equally near ones in the order given, -1 where there
        are fewer; nothing but -1 for one that is in no network."""
        ...

    def knows(self, asset: str) -> bool:
        """Whether an asset is in a network."""
        ...
