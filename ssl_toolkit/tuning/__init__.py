"""Short trials before a run: the learning rate range test, the fastest settings, the steps that fit a time budget."""
