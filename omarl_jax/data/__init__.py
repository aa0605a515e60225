"""Offline datasets: in memory (`dataset`), on disk (`storage`), how each is made (`recipes`), and their cards."""
