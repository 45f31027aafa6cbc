"""The backend with something changed: what a test must notice, or a wait that is too long for one.

TESTS_ALTER names it, as JSON: `{"synchronous": "NORMAL", "BODY_SECONDS": 2}`.
"""

from __future__ import annotations

import json
import os

import app as backend

changed = json.loads(os.environ["TESTS_ALTER"])
synchronous = changed.pop("synchronous", "FULL")
for connection in (backend.WriterConnection, backend.ReaderConnection):
    connection.pragmas = tuple(pragma.replace("= FULL", f"= {synchronous}") for pragma in connection.pragmas)
for name, value in changed.items():
    assert hasattr(backend, name)
    setattr(backend, name, value)
app = backend.app
