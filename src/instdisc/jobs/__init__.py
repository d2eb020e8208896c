"""What the commands do, as functions: the command line parses words and calls one of these."""

from __future__ import annotations
