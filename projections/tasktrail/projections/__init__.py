"""What is built from the trail and can be built again: current states, the audit store, the Merkle tree."""
