"""Which version a request goes to that names a label, or none."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Route"]


@dataclass(frozen=True, slots=True)
class Route:
    """Labels of one model's versions, and how its requests are shared out.

    Attributes:
      labels: the version that each label stands for, such as `stable` or `canary`.
      shares: percent of the requests that name no version, by label; the rest goes to the highest
        version that has none of these labels.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)

    def choose(self, identifier: bytes) -> int | None:
        """Returns the version for a request without one, or None for the default.

        Requests with the same id go to the same version, in every process and on every machine.

        Args:
          identifier: the request's id; one that has none is sent at random.
        """
        if identifier:
            digest = hashlib.sha256(identifier).digest()
            point = int.from_bytes(digest[:8], "big") / 2**64 * 100
        else:
            point = random.uniform(0, 100)
        for label, share in self.shares.items():
            if point < share:
                return self.labels[label]
            point -= share
        return None
