"""The token bucket never releases more than its rate, and releases all of it."""

from __future__ import annotations

import random

import pytest

from tailsrv.token_bucket import STEP_SECONDS, TokenBucket


@pytest.mark.parametrize("rate", [1, 7, 1000, 2**20, 10**9])
def test_the_bytes_of_any_period_are_those_of_the_rate_and_at_most_two_steps_more(rate: int) -> None:
    rng = random.Random(rate)
    now, sent = 0.0, 0
    bucket = TokenBucket(rate, now)
    for _ in range(2000):
        taken = bucket.take(now, 1 << 40)
        used = rng.randint(0, taken)
        bucket.put_back(taken - used)
        sent += used
        now += rng.choice([0.0, bucket.wait_seconds(), rng.random() * 3 * STEP_SECONDS])
    assert sent <= rate * now + 2 * max(1, rate * STEP_SECONDS)


@pytest.mark.parametrize("rate", [20, 1000, 2**20])
def test_a_client_that_sends_whenever_the_bucket_allows_reaches_the_rate(rate: int) -> None:
    now, sent = 0.0, 0
    bucket = TokenBucket(rate, now)
    while now < 60.0:
        sent += bucket.take(now, 1 << 40)
        now += bucket.wait_seconds() + 1e-6
    assert sent >= rate * now * 0.98


def test_a_client_that_did_not_read_for_an_hour_gets_two_steps_at_most() -> None:
    bucket = TokenBucket(1000, 0.0)
    assert bucket.take(3600.0, 1 << 40) == 2 * 1000 * STEP_SECONDS


def test_a_take_that_is_too_early_gets_nothing_and_the_wait_is_until_the_next_step() -> None:
    bucket = TokenBucket(1000, 0.0)
    assert bucket.take(0.0, 1 << 40) == 50
    assert bucket.take(0.01, 1 << 40) == 0
    assert bucket.wait_seconds() == pytest.approx(0.04)
    assert bucket.take(0.0501, 1 << 40) == 50


def test_a_request_smaller_than_a_step_does_not_wait_for_a_step() -> None:
    bucket = TokenBucket(1000, 0.0)
    assert bucket.take(0.0, 45) == 45
    assert bucket.take(0.0, 5) == 5
