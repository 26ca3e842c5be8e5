"""Triton's interpreter must be chosen before Triton is imported: see test_interpreted.py."""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
