"""Batches: chance follows from (seed, epoch, index) alone, and the tuning part never splits a group."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytolens.images import Images
from cytolens.problems import DatasetError, Problems
from cytolens.train.batches import EpochSampler, Samples, loader, readable, tuning_part

pytestmark = pytest.mark.torch


def test_an_epoch_is_a_permutation_and_epochs_differ() -> None:
    sampler = EpochSampler(50, seed=3)
    first = list(sampler)
    assert sorted(index for _, index in first) == list(range(50))
    assert first == list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert [i for _, i in first] != [i for _, i in second]


@given(count=st.integers(1, 40), world=st.integers(1, 4))
def test_processes_share_an_epoch(count: int, world: int) -> None:
    parts = [[i for _, i in EpochSampler(count, 1, rank=rank, world=world)] for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert set().union(*map(set, parts)) == set(range(count))


def test_weights_decide_how_often() -> None:
    draws = [i for _, i in EpochSampler(3, 0, weights=[1, 1, 8], length=20_000)]
    assert np.bincount(draws) / 20_000 == pytest.approx([0.1, 0.1, 0.8], abs=0.01)


def test_samples_do_not_depend_on_the_worker() -> None:
    def make(index: int, random: np.random.Generator, epoch: int) -> tuple[int, int, float]:
        return index, epoch, float(random.random())

    def batches(workers: int) -> list:
        sampler = EpochSampler(12, seed=5)
        sampler.set_epoch(4)
        return list(loader(Samples(make, 12, 5), sampler, 4, workers, list))

    assert batches(0) == batches(2)
    assert len(batches(0)) == 3


def table(groups: list[str | None], hashes: list[str | None]) -> pl.DataFrame:
    rows = [{"image_id": f"i{k}", "group": g, "sha256": s} for k, (g, s) in enumerate(zip(groups, hashes, strict=True))]
    return Images.of(rows).frame


@given(
    groups=st.lists(st.sampled_from([None, "a", "b", "c", "d"]), min_size=1, max_size=40),
    hashes=st.lists(st.sampled_from([None, "1", "2", "3"]), min_size=40, max_size=40),
    seed=st.integers(0, 5),
)
def test_the_tuning_part_takes_whole_groups_and_whole_duplicates(groups, hashes, seed) -> None:
    frame = table(groups, hashes[: len(groups)])
    kept = tuning_part(frame, 0.3, seed)
    for column in ("group", "sha256"):
        inside = set(frame[column].filter(pl.Series(kept)).drop_nulls())
        outside = set(frame[column].filter(pl.Series(~kept)).drop_nulls())
        assert not inside & outside


def test_the_tuning_part_has_about_its_share_and_is_stable_when_images_are_added() -> None:
    small = table([None] * 1000, [None] * 1000)
    kept = tuning_part(small, 0.1, 1)
    assert kept.sum() == 100
    assert (tuning_part(small, 0.1, 1) == kept).all()
    assert (tuning_part(small, 0.1, 2) != kept).any()
    more = tuning_part(table([None] * 1100, [None] * 1100), 0.1, 1)
    assert (more[:1000] != kept).sum() < 30  # only what the larger share moves


def test_unreadable_images_are_collected_and_nothing_readable_is_an_error(tmp_path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 3)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    problems = Problems()
    paths = [str(tmp_path / name) for name in ("bad.png", "good.png", "gone.png")]
    assert [(i, p.shape) for i, p in readable(paths, problems)] == [(1, (3, 4, 3))]
    assert problems.counts() == {"image-not-an-image": 1, "image-missing": 1}
    with pytest.raises(DatasetError, match="no image can be read"):
        list(readable(paths[:1], Problems()))
