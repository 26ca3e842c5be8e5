"""What is read back from a run's folder: its page, and how accuracies spread over seeds."""
