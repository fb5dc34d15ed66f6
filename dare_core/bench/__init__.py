"""Benchmarks against what a user would run instead. Each is a program that prints one JSON line."""
