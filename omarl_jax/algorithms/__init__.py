"""The methods, one file each. A method is found by the name of its module and imported on use.

The module `name` holds the factory `name(config, spec) -> Algorithm`, the dataclass `Config` with its
hyperparameters, and `validate(config, spec)`, which raises a `UserError` for values that make no sense.
"""
