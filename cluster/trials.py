"""How a canary comes to be judged: its teacher, found through the registry, and a secret for its judge."""

from __future__ import annotations

from cluster.errors import InvalidInput, NotFound, Violation
from cluster.ids import new_lease_token
from cluster.registry import resolve
from cluster.store.deployment_records import Gate, Trial
from cluster.store.records import StoredModel
from cluster.store.store import Store


def begin_trial(store: Store, gate: Gate, model: StoredModel, field: str = "gate.teacher") -> Trial:
    """InvalidInput / INVALID_GATE where there is no teacher to compare with; `field` is the one to mend."""
    reference = gate.teacher or next(iter(model.teachers), "")
    if not reference:
        words = f"the registry knows no teacher of {model.reference}; name the model to compare it with"
        raise InvalidInput("INVALID_GATE", f"{field}: {words}", [Violation(field, words)])
    try:
        teacher = resolve(store, reference)
    except (NotFound, InvalidInput) as error:
        raise InvalidInput("INVALID_GATE", f"{field}: {error.message}", [Violation(field, error.message)]) from error
    return Trial(gate, teacher.reference, teacher.path, new_lease_token())
