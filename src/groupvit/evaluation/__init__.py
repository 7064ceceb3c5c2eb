"""How good it is: data sets with masks, metrics, baselines, retrieval."""
