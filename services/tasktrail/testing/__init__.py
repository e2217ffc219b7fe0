"""Real servers and given-when-then for tests, ours and others."""
