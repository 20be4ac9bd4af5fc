"""Pages that are one file and load nothing: escaped text, embedded data, the policy, the colours that all pages share."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from typing import Any

from luthier.data.write import plain


def text(value: Any, width: int | None = None) -> str:
    """Text from data, for HTML: control characters stripped, then escaped."""
    return escape(plain(value, width), quote=True)


def for_script(value: Any) -> str:
    """JSON that can stand inside `<script>`: no `<`, `>`, `&` or line separator is left as such."""
    written = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def policy(script: str, style: str) -> str:
    """A content-security policy that admits this inline script and style, and images in the page; nothing else."""
    return (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def digest(source: str) -> str:
    """The policy's source expression for an inline element with this content."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() + "'"


def palette() -> str:
    """The colours and typefaces of every page, light and dark, as custom properties of CSS."""
    return files("luthier.data").joinpath("palette.css").read_text(encoding="utf-8")
