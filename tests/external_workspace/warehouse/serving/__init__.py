"""The warehouse's way of serving customers. Not Slipway's `serving`."""

COUNTERS = 3
