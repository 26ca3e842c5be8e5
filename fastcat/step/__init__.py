"""One training step of all peers; algorithm.py is read first."""
