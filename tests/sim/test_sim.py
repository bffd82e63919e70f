"""Seeded simulations of the real session host on workers and a database that fail in every way
(`tests/sim`).

A seed that fails is printed; `make sim SEED=n` plays it again, `make sim SEED=n COUNT=m` looks for
more.
"""

from __future__ import annotations

import logging

import pytest

from tests.sim.cluster import ClusterWorld
from tests.sim.world import World

SEEDS = 500
AT_ONCE = 125
CLUSTER_SEEDS = 60
CLUSTER_AT_ONCE = 20


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_whatever_fails_nothing_is_lost_or_doubled(
    first: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    for seed in range(first, first + AT_ONCE):
        world = World(seed)
        try:
            world.play()
        except BaseException as error:
            error.add_note(f"make sim SEED={seed}")
            raise
        assert world.store.commits


@pytest.mark.parametrize("first", range(0, CLUSTER_SEEDS, CLUSTER_AT_ONCE))
def test_several_nodes_of_which_any_may_fail(first: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    zombies = 0
    for seed in range(first, first + CLUSTER_AT_ONCE):
        world = ClusterWorld(seed)
        try:
            world.play()
        except BaseException as error:
            error.add_note(f"make sim-cluster SEED={seed}")
            raise
        zombies += world.zombies
    assert zombies


@pytest.mark.parametrize(
    "seed",
    [
        2845,  # a call that came when the node had stopped was begun, and never ended
        3443,  # a machine did not hear that somebody left, and they came back
        4363,  # the id of an event that waited was forgotten, and a copy of the event taken in
    ],
)
def test_what_earlier_seeds_found(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    ClusterWorld(seed).play()


def test_the_same_seed_is_the_same_run() -> None:
    first, again = World(7), World(7)
    first.play()
    again.play()
    assert (first.loop.now_s, first.store.commits, first.store.journals) == (
        again.loop.now_s,
        again.store.commits,
        again.store.journals,
    )
