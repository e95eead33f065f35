"""How the built-in toy model was made: data, networks and training loop (see ``tools/train_toy.py``)."""
