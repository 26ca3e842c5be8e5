"""What is typed: the settings of runs and evaluations, on the command line and in YAML."""
