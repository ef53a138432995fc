"""What a learner becomes depends neither on how the work is cut (I3) nor on stops (I4); plain torch, one worker.

The same with DeepSpeed and with several workers is in tests/integration/trainer.
"""

import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_jobs import TINY_GPT2, TINY_LLAMA, distill_job, fine_tune_job
from trainer.engine import ENGINES
from trainer.errors import CheckpointError, UserError
from trainer.faculty import Faculty
from trainer.fit import first_model, fit
from trainer.learner import Learner
from trainer.listener import Silent, Stopped
from trainer.models import load_model
from trainer.objective import CrossEntropy
from trainer.peers import Peers
from trainer.prepare import prepare
from trainer.prepared import Prepared
from trainer.teacher import LocalTeacher, Targets, TeacherModel


class Heard(Silent):
    """Remembers; asks to stop after `stop_after` questions."""

    def __init__(self, stop_after=None):
        self.events, self.steps, self.left = [], [], stop_after

    def progress(self, stage, step, total, **figures):
        self.steps.append((step, figures["loss"]))

    def event(self, reason, message):
        self.events.append(reason)

    def should_stop(self):
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0


def learn(ctx, teacher=None, listener=None, role="student"):
    prepare(ctx)
    return fit(ctx, role, Peers.alone(), teacher, listener or Heard(), engine="torch")


def weights(ctx, role="student"):
    return load_file(ctx.model_dir(role) / "model.safetensors")


def metrics(ctx, role="student"):
    return [json.loads(line) for line in ctx.metrics_path(role).read_text().splitlines()]


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(
            tensor, other[name], rtol=0.0, atol=tolerance, msg=lambda text, at=name: f"{at}: {text}"
        )


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A finished FineTune job: the teacher of the others."""
    ctx = fine_tune_job(tmp_path_factory.mktemp("teacher"))
    learn(ctx)
    return ctx


@pytest.fixture
def teacher(taught):
    return Faculty.alone(LocalTeacher(TeacherModel(str(taught.model_dir("student")), dtype="float32")))


def test_learning_lowers_the_loss_and_leaves_a_model_that_loads(taught):
    losses = [line["loss"] for line in metrics(taught)]
    assert losses[-1] < losses[0] - 0.5
    model = load_model(str(taught.model_dir("student")), torch.float32)
    done = json.loads((taught.role_dir("student") / "done.json").read_text())
    assert done["steps"] == 6
    assert done["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert done["loss"] == losses[-1]
    assert done["tokens"] == metrics(taught)[-1]["tokens"]


def test_a_finished_learner_is_not_trained_again(taught):
    before, heard = weights(taught), Heard()
    result = learn(taught, listener=heard)
    assert result.steps == 6
    assert heard.steps == []
    assert_equal(weights(taught), before)


def test_micro_batches_change_no_result(taught, tmp_path):
    other = fine_tune_job(tmp_path, training={"micro_batch_tokens": 40})
    learn(other)
    assert_close(weights(other), weights(taught), 2e-5)
    assert [line["tokens"] for line in metrics(other)] == [line["tokens"] for line in metrics(taught)]


def one_step(directory, **data):
    """The gradient of the very first step over all the data, as its norm, and the loss."""
    ctx = fine_tune_job(
        directory,
        data=data,
        training={"max_steps": 1, "batch_tokens": 100_000, "micro_batch_tokens": 300, "learning_rate": 1e-9},
    )
    learn(ctx)
    [line] = metrics(ctx)
    return line["loss"], line["grad_norm"]


def test_packing_and_padding_change_neither_loss_nor_gradient(tmp_path):
    plain = one_step(tmp_path / "plain")
    assert one_step(tmp_path / "packed", packing_strategy="bfd") == pytest.approx(plain, rel=1e-5)
    assert one_step(tmp_path / "wider", max_length=128, packing_strategy="bfd") == pytest.approx(plain, rel=1e-5)


OPT = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_a_student_that_would_mix_up_packed_samples_is_refused(strategy, tmp_path):
    student = {"config": {**OPT, "word_embed_proj_dim": 32}}
    ctx = fine_tune_job(tmp_path, student=student, data={"packing_strategy": strategy})
    with pytest.raises(UserError, match=r"\(opt\) mixes up samples .*packing_strategy: none") as error:
        learn(ctx)
    assert error.value.reason == "MODEL_UNSUPPORTED"


@pytest.mark.parametrize("config", [TINY_LLAMA, TINY_GPT2], ids=["llama", "gpt2"])
def test_samples_longer_than_the_students_positions_are_refused(config, tmp_path):
    ctx = fine_tune_job(tmp_path, student={"config": config}, data={"max_length": 129})
    with pytest.raises(UserError, match="max_length is 129, but the fresh student has 128 positions") as error:
        learn(ctx)
    assert error.value.reason == "MAX_LENGTH"


@pytest.mark.parametrize("config", [TINY_LLAMA, {**TINY_GPT2, "resid_pdrop": 0.1}], ids=["llama", "gpt2-dropout"])
def test_gradient_checkpointing_changes_no_bit(config, tmp_path):
    student = {"config": config, "tokenizer": {"vocab_size": 320}}
    plain, again = (
        fine_tune_job(tmp_path / str(checkpointed), student=student, training={"gradient_checkpointing": checkpointed})
        for checkpointed in (False, True)
    )
    learn(plain)
    learn(again)
    assert_equal(weights(again), weights(plain))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_optimizer_on_the_host_changes_no_bit_where_all_is_on_the_host(precision, tmp_path):
    plain, offloaded = (
        fine_tune_job(tmp_path / place, training={"precision": precision, "offload_optimizer": place})
        for place in ("none", "cpu")
    )
    learn(plain)
    learn(offloaded)
    assert_equal(weights(offloaded), weights(plain))


def test_wrapped_rows_are_learned_and_resumed(tmp_path):
    settings = {"data": {"packing_strategy": "wrapped"}, "training": {"micro_batch_tokens": 64}}
    whole, cut = (fine_tune_job(tmp_path / name, **settings) for name in ("whole", "cut"))
    learn(whole)
    with pytest.raises(Stopped, match="after step 4"):
        learn(cut, listener=Heard(stop_after=3))
    learn(cut, listener=Heard())
    assert_equal(weights(cut), weights(whole))
    lines = metrics(whole)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    seen = [0, *(line["tokens"] for line in lines)]
    assert max(after - before for before, after in itertools.pairwise(seen)) == 256  # batch_tokens, without padding


def test_the_rate_of_a_job_stays_at_its_peak_and_falls_at_the_end(tmp_path):
    schedule = {"lr_scheduler_type": "warmup_stable_decay", "warmup_ratio": 0.3, "decay_ratio": 0.5}
    ctx = fine_tune_job(tmp_path, training=schedule)
    learn(ctx)
    rates = [line["learning_rate"] / 0.01 for line in metrics(ctx)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 2 / 3, 1 / 3])


def test_the_same_job_twice_is_bit_identical(taught, tmp_path):
    again = fine_tune_job(tmp_path)
    learn(again)
    assert_equal(weights(again), weights(taught))


@pytest.mark.parametrize("config", [TINY_LLAMA, {**TINY_GPT2, "resid_pdrop": 0.1}], ids=["llama", "gpt2-dropout"])
@pytest.mark.parametrize("stop_after", [2, 3])
def test_stopped_and_resumed_equals_never_stopped(config, stop_after, tmp_path):
    student = {"config": config, "tokenizer": {"vocab_size": 320}}
    whole, cut = (fine_tune_job(tmp_path / name, student=student) for name in ("whole", "cut"))
    learn(whole)
    with pytest.raises(Stopped, match=f"after step {stop_after + 1}"):
        learn(cut, listener=Heard(stop_after=stop_after))
    assert not cut.model_dir("student").exists()
    heard = Heard()
    learn(cut, listener=heard)
    assert heard.events[0] == "RESUMED"
    assert [step for step, _ in heard.steps] == list(range(stop_after + 2, 7))
    assert_equal(weights(cut), weights(whole))
    same = ("step", "loss", "terms", "learning_rate", "grad_norm", "tokens")
    assert [[line[name] for name in same] for line in metrics(cut)] == [
        [line[name] for name in same] for line in metrics(whole)
    ]


def test_a_damaged_checkpoint_costs_steps_and_no_bits(taught, tmp_path):
    cut = fine_tune_job(tmp_path)
    with pytest.raises(Stopped):
        learn(cut, listener=Heard(stop_after=4))
    newest = max(cut.checkpoints_dir("student").iterdir())
    assert newest.name == "step-00000005"
    with (newest / "model.safetensors").open("ab") as file:
        file.write(b"x")
    heard = Heard()
    learn(cut, listener=heard)
    assert heard.events[:2] == ["CHECKPOINT_DAMAGED", "RESUMED"]
    assert heard.steps[0][0] == 5
    assert_equal(weights(cut), weights(taught))


def test_settings_of_another_topology_do_not_resume(tmp_path):
    cut = fine_tune_job(tmp_path)
    with pytest.raises(Stopped):
        learn(cut, listener=Heard(stop_after=1))
    with pytest.raises(CheckpointError, match="precision was fp32 and is bf16"):
        learn(fine_tune_job(tmp_path, training={"precision": "bf16"}))


def test_bfloat16_learns_too(tmp_path):
    ctx = fine_tune_job(tmp_path, training={"precision": "bf16"})
    learn(ctx)
    assert metrics(ctx)[-1]["loss"] < metrics(ctx)[0]["loss"] - 0.5
    assert weights(ctx)["model.norm.weight"].dtype == torch.bfloat16


def test_bfloat16_leaves_rotary_frequencies_as_the_served_model_has_them(tmp_path):
    ctx = fine_tune_job(tmp_path, training={"precision": "bf16"})
    prepare(ctx)
    model = first_model(ctx, Prepared.open(ctx))
    before = model.model.rotary_emb.inv_freq.clone()
    ENGINES["torch"](Learner(model, CrossEntropy(8)), ctx.spec.training, Peers.alone())
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


def test_epochs_are_turned_into_steps(tmp_path):
    ctx = fine_tune_job(tmp_path, training={"max_steps": None, "num_epochs": 1.5})
    result = learn(ctx)
    ids = Prepared.open(ctx).train
    assert result.tokens > 1.2 * sum(ids.lengths)


def test_a_student_equal_to_its_teacher_stays_as_it_is(taught, teacher, tmp_path):
    same = {"model": str(taught.model_dir("student"))}
    ctx = distill_job(
        tmp_path,
        taught.model_dir("student"),
        student=same,
        objective={"kd_ratio": 1.0},
        training={"weight_decay": 0.0, "max_steps": 2},
    )
    learn(ctx, teacher)
    assert [(line["loss"], line["grad_norm"]) for line in metrics(ctx)] == [(0.0, 0.0)] * 2
    assert_equal(weights(ctx), weights(taught))


def test_distillation_lowers_the_divergence_and_names_its_terms(taught, teacher, tmp_path):
    ctx = distill_job(tmp_path, taught.model_dir("student"), training={"max_steps": 12})
    learn(ctx, teacher)
    lines = metrics(ctx)
    assert set(lines[0]["terms"]) == {"distillation", "forward_kl", "cross_entropy"}
    assert lines[-1]["terms"]["forward_kl"] < 0.8 * lines[0]["terms"]["forward_kl"]
    for line in lines:
        expected = 0.7 * 4 * line["terms"]["forward_kl"] + 0.3 * line["terms"]["cross_entropy"]
        assert line["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("depth", [0, 7])
def test_prefetching_changes_no_bit(depth, taught, teacher, tmp_path):
    ctx, other = (
        distill_job(
            tmp_path / str(name),
            taught.model_dir("student"),
            training={"prefetch_depth": name, "micro_batch_tokens": 64, "max_steps": 3},
        )
        for name in (2, depth)
    )
    learn(ctx, teacher)
    learn(other, teacher)
    assert_equal(weights(other), weights(ctx))


def test_the_baseline_takes_as_many_steps_and_no_teacher(taught, teacher, tmp_path):
    ctx = distill_job(
        tmp_path, taught.model_dir("student"), training={"max_steps": 3}, evaluate={"baseline": {"max_samples": 10}}
    )
    learn(ctx, teacher)
    result = learn(ctx, None, role="baseline")
    assert result.steps == 3
    assert set(metrics(ctx, "baseline")[0]["terms"]) == {"cross_entropy"}


class PoisonedTeacher(LocalTeacher):
    """Answers about one sample are not numbers."""

    def __init__(self, model, sample_id):
        super().__init__(model)
        self.sample_id = sample_id

    def request(self, batch, wanted):
        targets = super().request(batch, wanted)()
        if self.sample_id in batch.sample_ids:
            targets = Targets(targets.hidden_ND * float("nan"))
        return lambda: targets


@pytest.fixture
def watched(monkeypatch):
    """The engine of the next learner, and its weights and optimizer state as they were before the first step."""
    seen, make = {}, ENGINES["torch"]

    def watch(*args):
        engine = seen["engine"] = make(*args)
        seen["before"] = copied(engine)
        return engine

    monkeypatch.setitem(ENGINES, "torch", watch)
    return seen


def copied(engine):
    return {name: tensor.clone() for name, tensor in {**engine.model_state(), **engine.state()}.items()}


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_rows(taught, tmp_path, watched):
    whole_set = {"batch_tokens": 100_000, "micro_batch_tokens": 24}
    ctx = distill_job(tmp_path, taught.model_dir("student"), training=whole_set)
    prepare(ctx)
    model = TeacherModel(str(taught.model_dir("student")), dtype="float32")
    with pytest.raises(UserError, match="loss of step 1 is not finite") as error:
        learn(ctx, Faculty.alone(PoisonedTeacher(model, 17)))
    assert error.value.reason == "NON_FINITE_LOSS"
    assert "Rows of the training data: 18." in str(error.value)
    assert_equal(copied(watched["engine"]), watched["before"])
    assert not ctx.model_dir("student").exists()


def test_weights_that_overflow_are_caught_by_the_gradient_before_the_update(tmp_path, watched):
    ctx = fine_tune_job(tmp_path)
    prepare(ctx)
    model = first_model(ctx, Prepared.open(ctx))
    broken = tmp_path / "broken"
    Prepared.open(ctx).tokenizer.save_pretrained(broken)
    model.save_pretrained(broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"] *= 1e30
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    other = fine_tune_job(tmp_path / "other", student={"model": str(broken)})
    with pytest.raises(UserError, match="the gradient of step 1 is not finite") as error:
        learn(other)
    assert error.value.reason == "NON_FINITE_LOSS"
    assert_equal(copied(watched["engine"]), watched["before"])
