from __future__ import annotations

import re

from cluster.ids import hash_token, new_job_uid, new_lease_token, ray_job_id


def test_job_uid_is_the_name_and_eight_unmistakable_characters() -> None:
    uids = {new_job_uid("support-bot") for _ in range(200)}
    assert len(uids) == 200
    assert all(re.fullmatch(r"support-bot-[a-z2-9]{8}", uid) for uid in uids)


def test_ray_job_id_names_the_attempt() -> None:
    assert ray_job_id("bot-abcdefgh", 3) == "bot-abcdefgh-3"


def test_lease_tokens_are_secret_and_hashed() -> None:
    token = new_lease_token()
    assert len(token) >= 32
    assert token != new_lease_token()
    assert re.fullmatch(r"[0-9a-f]{64}", hash_token(token))
    assert token not in hash_token(token)
