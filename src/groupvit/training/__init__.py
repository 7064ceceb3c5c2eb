"""How it learns: losses, the loop, its state, and the named runs."""
