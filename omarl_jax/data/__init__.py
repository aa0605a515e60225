"""Offline datasets: in memory (`dataset`), on disk (`storage`), their checks (`validation`), cards and importers."""
