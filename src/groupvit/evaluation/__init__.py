"""How good it is: benchmarks, protocols, metrics, result files; baselines, classification, retrieval."""
