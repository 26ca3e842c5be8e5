"""A run's folder from beginning to end: train, resume, evaluate."""
