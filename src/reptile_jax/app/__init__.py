"""The command line: configurations, experiments, and the one route that a run takes."""
