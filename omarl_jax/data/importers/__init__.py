"""Datasets in the layouts of other projects, one module a format."""
