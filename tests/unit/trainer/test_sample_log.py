"""Each step is in the log of samples once, with the samples that it learned from, whatever stopped the run."""

import json

import pytest

from tests.tiny_jobs import fine_tune_job
from trainer.fit import fit
from trainer.listener import Silent, Stopped
from trainer.peers import Peers
from trainer.prepare import prepare

LOGGED = {"log_sample_ids": True, "max_steps": 9, "micro_batch_tokens": 128}


class StopsOnce(Silent):
    """After so many steps."""

    def __init__(self, steps):
        self.left = steps

    def should_stop(self):
        self.left -= 1
        return self.left == 0


def learn(ctx, listener):
    prepare(ctx)
    fit(ctx, "student", Peers.alone(), None, listener, engine="torch")


def lines(ctx):
    return [json.loads(line) for line in ctx.samples_path("student", 0).read_text().splitlines()]


def test_an_epoch_takes_every_sample_once(tmp_path):
    ctx = fine_tune_job(tmp_path, training=LOGGED)
    learn(ctx, Silent())
    found = lines(ctx)
    assert sorted({line["step"] for line in found}) == list(range(1, 10))
    places = [(line["step"], line["place"]) for line in found]
    assert places == sorted(set(places))
    assert len(places) > 9, "several micro-batches in a step"
    taken = [one for line in found for one in line["sample_ids"]]
    assert len(taken) > 48
    assert sorted(taken[:48]) == list(range(48))


def test_a_resumed_run_logs_what_an_undisturbed_one_does(tmp_path):
    whole, stopped = (fine_tune_job(tmp_path / name, training=LOGGED) for name in ("whole", "stopped"))
    learn(whole, Silent())
    with pytest.raises(Stopped):
        learn(stopped, StopsOnce(5))
    known = stopped.samples_path("student", 0)
    known.write_text(known.read_text() + '{"step": 6, "place": 0, "sample_ids": [1]}\n{"step": 6, "pl')
    learn(stopped, Silent())
    assert lines(stopped) == lines(whole)


def test_without_being_asked_nothing_is_logged(tmp_path):
    ctx = fine_tune_job(tmp_path, training={"max_steps": 1})
    learn(ctx, Silent())
    assert not ctx.samples_path("student", 0).exists()
