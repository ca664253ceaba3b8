"""Holding one auction: from a prompt and agents to a settled, charged reply."""
