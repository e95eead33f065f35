"""The built-in toy model and its procedural assets: a demonstration and test model that runs on two CPU cores."""
