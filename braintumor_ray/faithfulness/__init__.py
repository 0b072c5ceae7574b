"""Whether heatmaps follow the network: deletion, insertion, parameter randomization."""
