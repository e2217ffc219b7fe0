"""The transparency log: a Merkle tree over the trail, its signed checkpoints, and the committed heads."""
