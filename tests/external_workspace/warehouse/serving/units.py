"""Units of what the counters measure."""

GRAMS_PER_KILOGRAM = 1000.0
