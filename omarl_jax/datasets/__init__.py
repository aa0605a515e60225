"""How datasets are made: the `catalogue` of recipes, `replay` data of online learning, and `behaviour` policies."""
