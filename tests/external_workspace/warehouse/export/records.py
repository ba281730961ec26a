"""The warehouse's export of records: its columns. Not Slipway's `export`."""

COLUMNS = ("weight", "volume", "age", "distance")
