"""Models that draw replies and say how likely they are."""
