"""Benchmarks against what a user would run instead; found in a checkout, not in the wheel."""
