"""Weights: the file format, and one folder for each model that is shipped."""
