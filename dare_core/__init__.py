"""DARE: knowledge features for recommenders, written with retrieval-based speculative decoding."""
