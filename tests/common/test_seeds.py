"""Seeds: a function of run, purpose, ordinal and index, with one literal value."""

import itertools

from common.seeds import candidate_seed


def test_seeds_are_functions_of_their_arguments() -> None:
    assert candidate_seed(0, "train", 3, 1) == 7096190245015685204  # printf '0|train|3|1' | b2sum -l 64, halved
    places = itertools.product((0, 1), ("train", "eval"), range(20), range(4))
    seeds = [candidate_seed(*place) for place in places]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
