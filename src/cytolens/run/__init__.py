"""Joining the stages: from a dataset and settings to a bundle that has been calibrated and examined."""
