"""DARE: knowledge features for recommenders, written with retrieval-based speculative decoding."""

from dare_core.storage.processors import give_way

give_way()  # before anything loads torch
