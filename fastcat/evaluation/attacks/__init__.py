"""Evaluation attacks, one file each; see `fastcat/evaluation/attack.py`."""
