"""Every method that a job file can name, on real models: nothing to learn from oneself, something from others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.tiny_jobs import TINY_LLAMA, distill_job
from trainer.batch import NOT_LEARNED, Batch, collate
from trainer.errors import UserError
from trainer.faculty import Faculty
from trainer.learner import LOSS, Learner
from trainer.models import fresh_model, load_model, logits_at_rows, write_model
from trainer.objective import Step, Together, learn_tokens
from trainer.objective_spec import DivergenceName
from trainer.peers import Peers
from trainer.taps import shape_of
from trainer.teacher import LocalTeacher, TeacherModel
from trainer.teaching import Teaching
from trainer.tokenizer import train_tokenizer

DIVERGENCES = get_args(DivergenceName)
PAYLOADS: dict[str, dict[str, Any]] = {
    "hidden": {"teacher_payload": "hidden_states"},
    "full": {"teacher_payload": "full_logits"},
    "top": {"teacher_payload": "topk_logits", "loss_top_k": 5},
    "top-without-tail": {"teacher_payload": "topk_logits", "loss_top_k": 5, "loss_add_tail": False},
}
MATCHES: dict[str, dict[str, Any]] = {
    "hidden": {"feature": "hidden", "layer_mapping": "uniform"},
    "embeddings": {"feature": "hidden", "layers": [[0, 0], [1, 1]]},
    "cosine": {"feature": "hidden", "loss": "cosine"},
    "attention": {"feature": "attention", "layer_mapping": "all"},
    "attention-kl": {"feature": "attention", "loss": "kl"},
    "value-relation": {"feature": "value_relation"},
    "tokens": {"feature": "token_similarity"},
    "distance": {"feature": "rkd_distance"},
    "angle": {"feature": "rkd_angle"},
}


TOKENIZER = train_tokenizer(["where is my card", "top up my account"], 300)
NUM_TOKENS = len(TOKENIZER)


def samples(count: int) -> list[Any]:
    g = torch.Generator().manual_seed(3)
    rows = [torch.randint(5, NUM_TOKENS, (6 + 3 * (at % 4),), generator=g).tolist() for at in range(count)]
    return [{"sample_id": at, "input_ids": row, "labels": [NOT_LEARNED] * 2 + row[2:]} for at, row in enumerate(rows)]


BATCH = collate([(0, 1), (2,), (3, 4, 5), (6,)], samples(7), 0)


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = fresh_model({**TINY_LLAMA, "initializer_range": 0.3}, TOKENIZER, 1)
    path = tmp_path_factory.mktemp("teacher") / "model"
    write_model(path, model, dict(model.named_parameters()), TOKENIZER)
    return path


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(teacher_dir: Path) -> TeacherModel:
    return TeacherModel(str(teacher_dir), dtype="float32")


class Lesson:
    """A student, what its objective is made of, and one batch."""

    def __init__(self, directory: Path, model: TeacherModel, config: dict[str, Any], seed: int, **objective: Any):
        spec = distill_job(directory, directory / "teacher", objective=objective).spec
        student = fresh_model({**TINY_LLAMA, "initializer_range": 0.3, **config}, TOKENIZER, seed)
        faculty = Faculty.alone(LocalTeacher(model))
        self.teaching = Teaching.settle(spec, faculty, BATCH, shape_of(student), Peers.alone())
        tokens = learn_tokens(spec.objective, NUM_TOKENS)
        self.learner = Learner(student, Together([tokens, *self.teaching.matches]))
        self.answers = self.teaching.request(BATCH)()

    def sums(self, batch: Batch = BATCH) -> dict[str, torch.Tensor]:
        return self.learner(batch, self.answers, Step(batch.num_targets))

    def gradients(self) -> list[torch.Tensor]:
        loss = self.sums()[LOSS] / BATCH.num_targets
        trained = [one for one in self.learner.parameters() if one.requires_grad]
        return [one for one in torch.autograd.grad(loss, trained, allow_unused=True) if one is not None]

    def values(self, name: str, steps: int, rate: float) -> list[float]:
        """Of a term, step by step."""
        adam, found = torch.optim.Adam(self.learner.parameters(), lr=rate), []
        for _ in range(steps):
            sums = self.sums()
            adam.zero_grad()
            (sums[LOSS] / BATCH.num_targets).backward()
            adam.step()
            found.append(sums[name].item() / BATCH.num_targets)
        return found


FALLING = [
    *((divergence, "hidden") for divergence in DIVERGENCES),
    ("forward_kl", "full"),
    ("jsd", "top"),
    ("reverse_kl", "top-without-tail"),
]
"""Every divergence and every payload; that payloads say the same is shown in test_answers.py."""
NARROW = {"hidden_size": 16, "intermediate_size": 24}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_equal_to_its_teacher_has_nothing_to_learn(divergence, payload, model, tmp_path):
    chosen = {"kd_ratio": 1.0, "temperature": 2.0, "divergence": divergence, **PAYLOADS[payload]}
    lesson = Lesson(tmp_path, model, {}, 1, **chosen)
    rounding = 1e-6 if divergence == "taid" else 0.0  # its target is made of both, and normalised once more
    assert lesson.sums()[LOSS].item() <= rounding * BATCH.num_targets
    assert all(one.abs().max().item() <= rounding for one in lesson.gradients())


@pytest.mark.parametrize("match", MATCHES)
def test_inner_values_of_a_student_equal_to_its_teacher_are_its_own(match, model, tmp_path):
    chosen = {"kd_ratio": 1.0, "intermediate_matches": [MATCHES[match]]}
    lesson = Lesson(tmp_path, model, {}, 1, **chosen)
    assert lesson.sums()[MATCHES[match]["feature"]].item() == pytest.approx(0.0, abs=1e-4)
    assert all(one.abs().max().item() < 1e-4 for one in lesson.gradients())


@pytest.mark.parametrize("match", MATCHES)
def test_what_is_matched_comes_nearer(match, model, tmp_path):
    """The student is narrower, has more layers and fewer heads; neither labels nor divergence move it."""
    if MATCHES[match].get("layer_mapping") != "all":
        config = {**NARROW, "num_hidden_layers": 3, "num_attention_heads": 2}
    else:
        config = NARROW
    chosen = {"kd_ratio": 0.0, "intermediate_matches": [{**MATCHES[match], "weight": 100.0}]}
    values = Lesson(tmp_path, model, config, 2, **chosen).values(MATCHES[match]["feature"], 25, 0.01)
    assert sum(values[-3:]) < 0.8 * sum(values[:3])


@pytest.mark.parametrize(("divergence", "payload"), FALLING)
def test_every_divergence_falls_and_is_never_negative(divergence, payload, model, tmp_path):
    chosen = {"kd_ratio": 1.0, "temperature": 1.5, "divergence": divergence, **PAYLOADS[payload]}
    values = Lesson(tmp_path, model, NARROW, 2, **chosen).values(divergence, 25, 0.02)
    assert sum(values[-3:]) < 0.8 * sum(values[:3])
    assert min(values) >= 0.0


def test_auto_says_what_travels_and_why(model, tmp_path):
    assert Lesson(tmp_path, model, NARROW, 2).teaching.why == (
        f"hidden_states, 128 bytes a position, the smaller exact form (full_logits: {4 * NUM_TOKENS:,} bytes)"
    )


def test_a_head_that_does_more_than_is_known_sends_its_logits_or_is_refused(teacher_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.teacher.load_model", lambda *where: odd(load_model(*where)))
    model = TeacherModel(str(teacher_dir), dtype="float32")
    lesson = Lesson(tmp_path, model, {}, 1, kd_ratio=1.0)
    assert lesson.teaching.why.endswith("as a teacher's head does more than its hidden states and weights say")
    assert lesson.answers[0].targets.logits_NV is not None
    assert lesson.sums()[LOSS].item() > 0.1
    with pytest.raises(UserError, match="hidden_states would not be exact") as error:
        Lesson(tmp_path, model, {}, 1, teacher_payload="hidden_states")
    assert error.value.reason == "PAYLOAD_INEXACT"


@pytest.mark.parametrize("payload", [{}, {"teacher_payload": "topk_logits", "loss_top_k": 400}], ids=["auto", "top"])
def test_a_head_that_does_more_on_real_samples_alone_sends_the_models_own_logits(
    payload, teacher_dir, tmp_path, monkeypatch
):
    """It looks plain when the teacher is loaded, on a few tokens."""
    monkeypatch.setattr("trainer.teacher.load_model", lambda *where: odd(load_model(*where), probe=(1, 8)))
    model = TeacherModel(str(teacher_dir), dtype="float32")
    lesson = Lesson(tmp_path, model, {}, 1, kd_ratio=1.0, temperature=1.0, **payload)
    found, own = lesson.answers[0].targets, logits_at_rows(odd(load_model(str(teacher_dir), torch.float32)), BATCH)
    if found.topk is None:
        torch.testing.assert_close(found.logits_NV, own[:, :NUM_TOKENS])
    else:
        expected = own[:, :NUM_TOKENS].log_softmax(dim=1).gather(1, found.topk.ids_MK.long())
        torch.testing.assert_close(found.topk.log_probs_MK, expected)


def odd(model: Any, probe: tuple[int, int] | None = None) -> Any:
    """Its logits are folded, which no `Head` describes; not those of a batch of shape `probe`."""
    model.lm_head.register_forward_hook(lambda _, _args, logits: logits if logits.shape[:2] == probe else logits.abs())
    return model


def test_layers_that_are_not_there_are_named(model, tmp_path):
    far = [{"feature": "hidden", "layers": [[3, 1]]}]
    with pytest.raises(UserError, match=r"no pair \[3, 1\]: the teacher has 2 layers") as error:
        Lesson(tmp_path, model, NARROW, 2, intermediate_matches=far)
    assert error.value.reason == "LAYERS_UNMATCHED"
