"""The chat page at `/`: one file that asks the API beside it, and a policy that lets it ask nobody else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import Response

_FILE = Path(__file__).with_name("chat.html")
_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


def response() -> Response:
    content, headers = _page()
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


@cache
def _page() -> tuple[bytes, dict[str, str]]:
    """The page, and headers that allow its own script and style by their hashes and nothing else."""
    content = _FILE.read_bytes()
    hashes = {kind.decode(): _hash(text) for kind, text in _INLINE.findall(content)}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }


def _hash(text: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
